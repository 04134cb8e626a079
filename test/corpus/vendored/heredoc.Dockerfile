FROM debian:12
ARG WHO=world
RUN <<EOF
set -e
echo "hello $WHO"
EOF
RUN <<-TABS cat
	leading tabs go
	TABS
RUN <<'END OF IT'
echo a name with blanks
END OF IT
RUN <<PY python3
print("an interpreter behind the name")
PY
RUN <<EOF
#!/usr/bin/env python3
print("an interpreter of its own")
EOF
RUN cat <<A > /a && cat <<B > /b
in a
A
in b
B
RUN 3<<EOF cat /dev/fd/3
through a descriptor
EOF
RUN echo $((1<<2)) "<<NOT" a<<b <<<here
COPY <<one.conf <<"two.conf" /etc/app/
who = ${WHO:-nobody}
one.conf
who = $WHO
two.conf
COPY --chmod=755 <<-"EOF" /usr/local/bin/start
	#!/bin/sh
	exec "$@"
EOF
ADD <<EOF /etc/motd
Welcome to $WHO
EOF
ONBUILD RUN <<EOF
echo later
EOF
