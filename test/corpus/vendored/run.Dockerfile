FROM golang:1.24 AS deps
WORKDIR /src
RUN --mount=type=cache,target=/go/pkg/mod,id=mod-$TARGETARCH,sharing=locked,uid=0,gid=0,mode=0755 \
    --mount=type=bind,source=go.mod,target=go.mod \
    --mount=type=bind,source=go.sum,target=go.sum,ro \
    go mod download
FROM golang:1.24
WORKDIR /src
RUN --mount=target=. --mount=type=cache,dst=/root/.cache,sharing=private go build ./...
RUN --mount=type=bind,from=deps,src=/go,destination=/deps,rw=true true
RUN --mount=type=bind,from=busybox,target=/tools /tools/bin/true
RUN --mount=type=tmpfs,target=/tmp,size=64m true
RUN --mount=type=secret,id=token,required=true,mode=0400,uid=1000 cat /run/secrets/token
RUN --mount=type=secret,id=npm,target=/root/.npmrc --mount=type=secret,id=key,env=API_KEY npm ci
RUN --mount=type=ssh ssh-add -l || true
RUN --mount=type=cache,target=/var/cache/apt,sharing=shared,from=deps,source=/go \
    --network=none --security=sandbox true
RUN --network=default -- true
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN true | false
