#!/bin/sh
# Runs HAProxy ($BIREME_HAPROXY) as Ray Serve calls it, with changes to the configuration it is given: the status page and the
# metrics listen on this machine alone, only this user may talk to the admin socket, as long as no application is known,
# after a restart, a request is told to come back (503) instead of that its path does not exist (404), and requests are not
# spliced: of a client that leaves before its answer begins, HAProxy 2.8 does not tell the ingress where the request was, and
# came in two pieces, as Python's clients send it. The ingress is told the address of a client, and a client on this machine cannot
# claim another one. A header must be complete within $BIREME_HEADER_TIMEOUT_S (10), and one
# address has at most $BIREME_MAX_CONNECTIONS_PER_ADDRESS connections (three quarters of all; 0: as many as there are). Ray Serve
# has no option for any of them. What http_options.host says about the API stays. Servers of this machine are reached by
# their sockets in $BIREME_HTTP_SOCKETS, where they have one; not in a folder whose name sed and grep would read otherwise.
# Who has sent nothing in that time is left without a word: clients that connect ahead would take a 408 for the answer to what they
# send next.
# Its log (requests, servers that come and go), which Serve has it send by UDP to port 514 of this machine, goes there only if somebody listens
# when the configuration changes: sent to nobody it is a fifth of what HAProxy takes for a request. With $RAY_SERVE_HAPROXY_LOG_TARGET it goes
# there in any case. Metrics are told elsewhere.
# Few requests go to few ingresses (haproxy_packing.awk); what ingresses say for it no client sees.
# Its process id goes into $BIREME_HAPROXY_PIDS, by which the run folder's janitor finds it: HAProxy outlives a Ray that is killed.
set -eu
config=
previous=
for argument; do
    [ "$previous" = -f ] && config=$argument
    previous=$argument
done
if [ -n "$config" ]; then
    all=$(sed -n 's/^ *maxconn \([0-9]\{1,\}\)$/\1/p' "$config" | head -n 1)
    most=${BIREME_MAX_CONNECTIONS_PER_ADDRESS:-$((${all:-4096} * 3 / 4))}
    header=${BIREME_HEADER_TIMEOUT_S:-10}
    claims='\n    http-request del-header X-Forwarded-For if { src 127.0.0.0\/8 ::1 }'
    told='\n    http-response del-header X-Bireme-Room'
    table=
    if [ "$most" -gt 0 ]; then
        table='stick-table type ipv6 size 100k expire 10m store conn_cur\n    tcp-request connection track-sc0 src'
        table="\\n    $table\\n    tcp-request connection reject if { sc0_conn_cur gt $most }"
    fi
    silent=
    port=$(sed -n '/^global/,/^defaults/ s/^ *log 127[.]0[.]0[.]1:\([1-9][0-9]\{0,4\}\) .*/\1/p' "$config" | head -n 1)
    if [ -z "${RAY_SERVE_HAPROXY_LOG_TARGET:-}" ] && [ -n "$port" ] && [ -r /proc/net/udp ]; then
        listens=" [0-9A-F]*:$(printf %04X "$port") [0-9A-F]*:0000 "
        grep -qs "$listens" /proc/net/udp /proc/net/udp6 || silent="/^global/,/^defaults/ { /^ *log 127[.]0[.]0[.]1:$port /d; }"
    fi
    reached=
    sockets=${BIREME_HTTP_SOCKETS:-/nowhere}
    case $sockets in *[!A-Za-z0-9._/+-]*) sockets=/nowhere ;; esac
    for socket in "$sockets"/*; do
        [ -S "$socket" ] && [ -r /proc/net/unix ] || continue
        if grep -q " $socket\$" /proc/net/unix; then
            reached="$reached;s#^\( *server [^ ]* \)127[.]0[.]0[.]1:${socket##*/} #\1unix@$socket #"
        else
            rm -f -- "$socket" # of a server that was killed
        fi
    done
    sed -e "/^defaults/,/mode http/ s/^ *mode http\$/&\\n    timeout http-request ${header}s\\n    option forwardfor\n    option http-ignore-probes/" \
        -e "/^frontend http_frontend/,/bind/ s/^ *bind .*/&$table$claims$told/" \
        -e '/^frontend prometheus/,/bind/ s/bind [*]\{0,1\}:/bind 127.0.0.1:/' \
        -e '/^ *option splice-request *$/d' \
        -e '/^listen stats/,/bind/ s/bind [*]\{0,1\}:/bind 127.0.0.1:/' \
        -e '/stats socket/ s/ mode 666 / mode 600 /' \
        -e "$silent" -e "$reached" "$config" >"$config.new"
    if ! grep -q '^ *use_backend ' "$config"; then
        sed -i '/^backend default_backend/,/return/ s/return status 404/return status 503 hdr Retry-After 1/' "$config.new"
    fi
    # Where there is no awk, requests are spread as Serve has it.
    if awk -f "${0%/*}/haproxy_packing.awk" "$config.new" >"$config.packed"; then
        mv "$config.packed" "$config.new"
    fi
    rm -f -- "$config.packed"
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
