ARG REGISTRY=docker.io/library
ARG TAG=12
ARG IMAGE=${REGISTRY}/debian:${TAG}-slim
FROM --platform=$BUILDPLATFORM ${IMAGE} AS build
ARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM BUILDOS BUILDARCH BUILDVARIANT TARGETSTAGE
ARG TAG
ARG VERSION=1.0 CHANNEL
WORKDIR /src
COPY . .
RUN make VERSION=$VERSION OS=$TARGETOS ARCH=$TARGETARCH
FROM scratch AS files
COPY --from=build /src/out /
FROM busybox:1.36@sha256:73aaf090f3d85aa34ee199857f03fa3a95c8ede2ffd4cc2cdb5b94e566b11662 AS tools
FROM build AS test-1.2_x
RUN make test
FROM $IMAGE
COPY --from=files / /usr/local/
COPY --from=0 /src/LICENSE /
COPY --from=tools /bin/busybox /bin/
COPY --from=nginx:1.27 /etc/nginx/nginx.conf /etc/nginx/
