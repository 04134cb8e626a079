FROM debian:12
LABEL org.opencontainers.image.title="app" org.opencontainers.image.version=1
ENV PATH=/opt/bin:$PATH LANG=C.UTF-8
EXPOSE 80 443/tcp 53/udp 5000-5002/sctp
VOLUME /data
USER app
STOPSIGNAL SIGQUIT
HEALTHCHECK NONE
HEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=5s --start-interval=500ms --retries=3 \
  CMD curl -f http://localhost/ || exit 1
HEALTHCHECK CMD ["/bin/check", "--fast"]
SHELL ["/bin/bash", "-c"]
CMD exec app
ENTRYPOINT []
ENTRYPOINT ["/entrypoint"]
CMD ["app", "--serve"]
