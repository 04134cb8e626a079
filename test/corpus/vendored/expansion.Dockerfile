FROM debian:12
ARG NAME=app
ARG ARCHIVE=lib/name-1.2.3.tar.gz
ENV x=value empty= path=/usr/local/lib
LABEL a=$x b=${x} c=${unset:-default} d=${empty-default} e=${x:+other} f=${unset+other} g=${x:?needed} h=${x?needed}
LABEL shortest-prefix=${ARCHIVE#*/} longest-prefix=${ARCHIVE##*[/]} shortest-suffix=${ARCHIVE%.*} longest-suffix=${ARCHIVE%%.*}
LABEL first=${path/l/L} every=${path//l/L} nested=${unset:-${empty:-$x}} escaped=\$x 'single'='$x' "double"="$x \" \$x"
WORKDIR /srv/$NAME
WORKDIR rel/${x}
USER ${uid:-1000}:${gid:-1000}
EXPOSE ${port:-8080} 53/udp 9000-9002
VOLUME /data/$NAME /more
VOLUME ["/data/$x", "/more"]
STOPSIGNAL ${signal:-SIGTERM}
COPY ${NAME}.conf ./$NAME/
ADD --chown=${uid:-1000}:${gid:-1000} $ARCHIVE /opt/
RUN echo "${x} is the shell's to expand" '$x' $$
CMD ["echo", "$x stays as it is"]
