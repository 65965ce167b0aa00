#!/bin/sh
# Runs HAProxy ($BIREME_HAPROXY) as Ray Serve calls it, with two changes to the configuration it is given: the status page and
# the metrics listen on this machine alone, and only this user may talk to the admin socket. Ray Serve writes both wider and
# has no option for it. What http_options.host says about the API stays. Its process id goes into $BIREME_HAPROXY_PIDS, by which
# the run folder's janitor finds it: HAProxy outlives a Ray that is killed.
set -eu
config=
previous=
for argument; do
    [ "$previous" = -f ] && config=$argument
    previous=$argument
done
if [ -n "$config" ]; then
    sed -e '/^frontend prometheus/,/bind/ s/bind [*]\{0,1\}:/bind 127.0.0.1:/' \
        -e '/^listen stats/,/bind/ s/bind [*]\{0,1\}:/bind 127.0.0.1:/' \
        -e '/stats socket/ s/ mode 666 / mode 600 /' "$config" >"$config.new"
    mv "$config.new" "$config"
fi
if [ -d "${BIREME_HAPROXY_PIDS:-}" ]; then
    : >"$BIREME_HAPROXY_PIDS/$$" # exec keeps the id
fi
exec "$BIREME_HAPROXY" "$@"
