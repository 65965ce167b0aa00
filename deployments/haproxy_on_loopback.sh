#!/bin/sh
# Runs HAProxy ($BIREME_HAPROXY) as Ray Serve calls it, with four changes to the configuration it is given: the status page and
# the metrics listen on this machine alone, only this user may talk to the admin socket, as long as no application is known,
# after a restart, a request is told to come back (503) instead of that its path does not exist (404), and requests are not
# spliced: of a client that leaves before its answer begins, HAProxy 2.8 does not tell the ingress where the request was, and
# came in two pieces, as Python's clients send it. Ray Serve has no option for any of them. What http_options.host says about
# the API stays. Its process id goes into $BIREME_HAPROXY_PIDS, by which the run folder's janitor finds it: HAProxy outlives a
# Ray that is killed.
set -eu
config=
previous=
for argument; do
    [ "$previous" = -f ] && config=$argument
    previous=$argument
done
if [ -n "$config" ]; then
    sed -e '/^frontend prometheus/,/bind/ s/bind [*]\{0,1\}:/bind 127.0.0.1:/' \
        -e '/^ *option splice-request *$/d' \
        -e '/^listen stats/,/bind/ s/bind [*]\{0,1\}:/bind 127.0.0.1:/' \
        -e '/stats socket/ s/ mode 666 / mode 600 /' "$config" >"$config.new"
    if ! grep -q '^ *use_backend ' "$config"; then
        sed -i '/^backend default_backend/,/return/ s/return status 404/return status 503 hdr Retry-After 1/' "$config.new"
    fi
    mv "$config.new" "$config"
fi
if [ -d "${BIREME_HAPROXY_PIDS:-}" ]; then
    # Each change of the configuration starts a new process, and so does each death: names of those that have ended go.
    for file in "$BIREME_HAPROXY_PIDS"/*; do
        kill -0 "${file##*/}" 2>/dev/null || rm -f -- "$file"
    done
    : >"$BIREME_HAPROXY_PIDS/$$" # exec keeps the id
fi
exec "$BIREME_HAPROXY" "$@"
