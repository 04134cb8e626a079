FROM debian:12
WORKDIR /app
COPY package.json package-lock.json ./
COPY ["file with blanks", "another one", "/dest dir/"]
COPY *.txt src/**/*.ts file-?.md set[[]0-9].x dir/
COPY --chown=app:app --chmod=u=rwX,go=rX . .
COPY --chmod=0755 bin /usr/local/bin
COPY --link --exclude=*.md --exclude=**/node_modules . /linked/
COPY --parents ./pkg/./*/package.json ./
COPY --link=false --from=busybox /bin/sh /sh
ADD archive.tar.gz /opt/
ADD --unpack=false archive.tar.xz /opt/
ADD --chown=1:1 --chmod=a+x --link --exclude=x dir /dir
ADD https://example.com/file.bin /opt/
ADD --checksum=sha256:24454f830cdb571e2c4ad15481119c43b3cafd48dd869a9b2945d1036d1dc68d https://example.com/linux.tar.gz /usr/src/
ADD --unpack=true https://example.com/dist.tar.zst /opt/dist
ADD https://example.com/team/repo.git#v1.2:docs /docs
ADD --keep-git-dir=true https://example.com/team/repo.git /repo
