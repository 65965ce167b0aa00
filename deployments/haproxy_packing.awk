# Adds to HAProxy's configuration, as Ray Serve writes it, what sends few requests to few ingresses. An ingress says in the head of each answer
# for how many open requests it has room, and how many it has (deployments/http/server/room.py). A request goes to the first with room; where
# none has, or nobody knows, to the one with the fewest, as Serve has it. Ingresses of this machine come first.
# What an ingress has open beside this process's own came by other proxies, or before the configuration changed. Own requests are counted when
# the answer comes, so that those on their way there seem to make up for others: what it has room for bounds all own ones as well.

function is_of_this_machine(address) {
    return address ~ /^(unix@|127\.0\.0\.1:)/
}

function finish_backend(    k, name, own, limit, bound, answered, rules, local) {
    if (num_servers > 1) {
        print "    http-response set-var(txn.bireme_limit) res.hdr(x-bireme-room),field(1,/),add(0)"
        print "    http-response set-var(txn.bireme_open) res.hdr(x-bireme-room),field(2,/),add(0)"
        for (k = 1; k <= num_servers; k++) {
            name = servers[k]
            own = "srv_conn(" backend "/" name ")"
            limit = "proc." prefix "_limit_" k
            bound = "proc." prefix "_bound_" k
            answered = "if { srv_name " name " } { var(txn.bireme_open) -m found }"
            print "    http-response set-var(" limit ") var(txn.bireme_limit) " answered
            print "    http-response set-var(" bound ") " own ",add(txn.bireme_limit),sub(txn.bireme_open) " answered
            # One may always be on its way there: only its answer tells that there is room again.
            rules[k] = "    use-server " name " if { " own ",sub(" limit ") lt 0 } { " own ",sub(" bound ") lt 0 }"
            rules[k] = rules[k] " or { " own ",sub(" limit ") lt 0 } { " own " lt 1 }"
        }
        for (local = 1; local >= 0; local--)
            for (k = 1; k <= num_servers; k++)
                if (is_local[k] == local)
                    print rules[k]
    }
    num_servers = 0
}

/^[a-z]/ {
    finish_backend()
    backend = $1 == "backend" ? $2 : ""
    prefix = "bireme_" ++num_sections
}

# Not those that only mirror another backend's health, or speak another protocol, or stand in.
backend != "" && $1 == "server" && !/ (track|proto|backup)( |$)/ {
    servers[++num_servers] = $2
    is_local[num_servers] = is_of_this_machine($3)
}

{ print }

END { finish_backend() }
