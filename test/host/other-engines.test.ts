import { readFileSync } from "node:fs";
import { lutimes, mkdir, symlink, utimes, writeFile } from "node:fs/promises";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { ImageProcess } from "../../src/core/image.ts";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { closeServer, listen } from "../../src/routes/listener.ts";
import { asNow, historyLines } from "../support/buildkit-history.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";
import { missingEngines, type OtherEngines, startOtherEngines } from "../support/other-engines.ts";
import { startRegistry, type TestRegistry } from "../support/registry.ts";
import { readDockerArchive, readLayout, type SavedImage } from "../support/saved-image.ts";

// What Berth builds is what BuildKit builds, and other engines run it: Debian's docker.io, podman and skopeo.

const missing = missingEngines();
if (missing.length > 0) console.warn(`other-engines.test.ts is left out: ${missing.join(", ")} not found`);

/** Every construct that leaves a trace, but for those that Debian's BuildKit (of 2021) does not have. */
const web = String.raw`ARG GLOBAL=1.0
ARG GLOBAL=1.0
FROM base:1 AS build
ARG GLOBAL
WORKDIR /src
COPY . .
RUN echo "built $GLOBAL" > out

FROM base:1
MAINTAINER Ada <ada@example.com>
ARG USED=used
ARG GIVEN=default
ARG UNUSED
ARG GLOBAL
ENV GREETING="hello there" PORT=8080
ENV LEGACY old form
ENV PORT=8081 COMPOSED="$GREETING/$GIVEN"
LABEL org.example.name="web" org.example.quote="a \"b\" c"
RUN echo "$USED $GIVEN" > /used; mkdir /made && chmod 1777 /made
RUN ["/bin/sh", "-c", "echo exec > /exec; rm /etc/group.old"]
RUN --mount=type=tmpfs,target=/scratch echo x > /scratch/x && \
  # a comment within
  echo ends > /ends
RUN true
COPY --chown=app:app a.txt dir /srv/
COPY --chmod=750 a.txt /opt/tool
COPY --from=build /src/out /srv/out
COPY ["with space.txt", "/srv/"]
ADD files.tar.gz /unpacked/
ADD --chown=1000:1000 a.txt ./
WORKDIR /srv
WORKDIR sub
WORKDIR /
WORKDIR /srv
USER app
WORKDIR /home/app/work
VOLUME /data /cache
VOLUME ["/more", "/even more"]
EXPOSE 8080 53/UDP 9000-9002
HEALTHCHECK --interval=90s --timeout=1500ms --retries=2 CMD test -e /used
STOPSIGNAL SIGQUIT
SHELL ["/bin/sh", "-ec"]
RUN echo shell > shell
ONBUILD RUN echo triggered > /home/app/triggered
ONBUILD COPY a.txt /home/app/
ENTRYPOINT exec /bin/sh -c "echo \$0 \$1; id -un; pwd; echo \$GREETING \$PORT; cat /srv/out /used shell" "$0" "$@"
CMD ["one", "tab\there <&> ü"]
`;
const printed = "one tab here <&> ü\napp\n/home/app/work\nhello there 8081\nbuilt 1.0\nused given\nshell\n";

/** Runs the triggers of `web`, and takes back what it has. */
const child = "FROM web:1\nHEALTHCHECK NONE\nENTRYPOINT []\nCMD cat /home/app/triggered /home/app/a.txt\n";

/** What Debian's BuildKit does not have. */
const newer = String.raw`# syntax=docker/dockerfile:1
FROM base:1
RUN <<EOF
echo script > /script
EOF
RUN <<-A cat > /joined; cat >> /joined <<B
	first
	A
second
B
COPY --link --chmod=u=rwx,go=rx <<EOF /usr/bin/tool
#!/bin/sh
cat /script /joined; ls /srv
EOF
COPY --exclude=**/c --parents dir/./sub *.txt /srv/
HEALTHCHECK --start-period=5s --start-interval=500ms CMD ["/bin/true"]
CMD ["/usr/bin/tool"]
`;

const contextFiles = { "a.txt": "a\n", "with space.txt": "space\n", "dir/b": "b\n", "dir/sub/c": "c\n" };
const contextTime = 1_700_000_000;

describe.skipIf(missing.length > 0)("beside Docker Engine, BuildKit and podman", () => {
  let engines: OtherEngines;
  let registry: TestRegistry;
  let host: DrivenHost;
  const digests = new Map<string, string>();
  /** What ends what was started, the last one first. */
  const ends: (() => Promise<void>)[] = [];

  beforeAll(async () => {
    registry = await startRegistry();
    ends.unshift(() => registry.stop());
    host = await DrivenHost.create(inject("postgresSocketDir"), { BERTH_INSECURE_REGISTRIES: registry.host });
    ends.unshift(() => host.destroy());
    const starting = startOtherEngines();
    ends.unshift(async () => (await starting).stop());
    [engines] = await Promise.all([starting, host.start()]);
    const base = 'FROM scratch\nCOPY busybox /bin/\nCOPY etc /etc\nRUN ["/bin/busybox", "--install", "-s", "/bin"]\n';
    await build("base:1", base, [
      entry("busybox", { content: readFileSync("/bin/busybox"), mode: 0o755 }),
      entry("etc/passwd", { content: "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n" }),
      entry("etc/group", { content: "root:x:0:\napp:x:1000:\n" }),
      entry("etc/group.old", { content: "" }),
    ]);
    await engines.docker("pull", "--quiet", at("base:1"));
    await engines.docker("tag", at("base:1"), "base:1");
    const directory = join(engines.dir, "context");
    const files = await writeContext(directory);
    for (const [tag, dockerfile] of [
      ["web:1", web],
      ["child:1", child],
      ["newer:1", newer],
    ] as const) {
      await build(tag, dockerfile, files);
      await engines.docker("pull", "--quiet", at(tag));
      if (tag === "newer:1") continue;
      await writeFile(join(directory, "Dockerfile"), dockerfile);
      const options = ["--network=none", "--quiet", "--build-arg=GIVEN=given", "--label=by=test", `--tag=${tag}`];
      await engines.docker("build", ...options, directory);
    }
  }, 120_000);
  afterAll(async () => {
    const failures: unknown[] = [];
    for (const end of ends) await end().catch((error: unknown) => failures.push(error));
    expect(failures).toEqual([]);
  });

  /** Its name in the registry that both engines can reach. */
  const at = (tag: string) => `${registry.host}/${tag}`;

  /** The same context as a directory and as entries of a tar. */
  async function writeContext(directory: string): Promise<LayerEntry[]> {
    const unpacked = [entry("x", { type: "directory" }), entry("x/f", { content: "tar", mode: 0o640, uid: 7, gid: 8 })];
    const archive = gzipSync(await collect(writeTar(unpacked)));
    const files = Object.entries({ ...contextFiles, "files.tar.gz": archive });
    await mkdir(join(directory, "dir/sub"), { recursive: true });
    for (const [path, content] of files) {
      await writeFile(join(directory, path), content);
      await utimes(join(directory, path), contextTime, contextTime);
    }
    await symlink("b", join(directory, "dir/link"));
    await lutimes(join(directory, "dir/link"), contextTime, contextTime);
    const mtime = { seconds: contextTime, nanoseconds: 0 };
    return [
      ...files.map(([path, content]) => entry(path, { content, mtime })),
      entry("dir/link", { type: "symlink", target: "b", mtime }),
    ];
  }

  /** Builds with Berth, and has Berth publish it. */
  async function build(tag: string, dockerfile: string, files: LayerEntry[], compression = "gzip"): Promise<void> {
    const query = new URLSearchParams({ tag, arg: "GIVEN=given", label: "by=test", compression });
    const authorization = `Bearer ${host.project.tokens.deployer}`;
    const response = await host.api.app.request(`/v1/builds?${query.toString()}`, {
      method: "POST",
      headers: { authorization, "content-type": "application/x-tar", prefer: "wait=60" },
      body: await collect(writeTar([...files, entry("Dockerfile", { content: dockerfile })])),
    });
    const made = (await response.json()) as { status: string; image: { digest: string } };
    expect(made).toMatchObject({ status: "succeeded" });
    const body = { reference: tag, destination: at(tag) };
    const pushed = await host.ask<{ status: string }>("POST", "/v1/images/push", body, { prefer: "wait=60" });
    expect(pushed.body).toMatchObject({ status: "succeeded" });
    digests.set(tag, made.image.digest);
  }

  /** What a container of Berth's prints. */
  async function ran(image: string): Promise<string> {
    const made = await host.ask<{ id: string }>("POST", "/v1/containers", { image }, { prefer: "wait=20" });
    const { id } = made.body;
    await host.ask("POST", `/v1/containers/${id}/wait`, {}, { prefer: "wait=20" });
    const authorization = `Bearer ${host.project.tokens.deployer}`;
    const logs = await host.api.app.request(`/v1/containers/${id}/logs`, { headers: { authorization } });
    await host.ask("DELETE", `/v1/containers/${id}?force=true`, undefined, { prefer: "wait=20" });
    return logs.text();
  }

  /** What skopeo makes of it in an OCI layout. */
  async function copied(tag: string): Promise<SavedImage & { digest: string }> {
    const directory = join(engines.dir, tag.replace(":", "-"));
    await engines.skopeo("copy", "--quiet", "--src-tls-verify=false", `docker://${at(tag)}`, `oci:${directory}`);
    return readLayout(directory);
  }

  /** What BuildKit made of it. */
  async function saved(tag: string): Promise<SavedImage> {
    const file = join(engines.dir, "saved.tar");
    await engines.docker("save", "--output", file, tag);
    return readDockerArchive(file);
  }

  test.for(["web:1", "child:1"])("%s: config, history and layers are BuildKit's", async (tag) => {
    const [ours, theirs] = [await copied(tag), await saved(tag)];
    const { ArgsEscaped, OnBuild, ...config } = theirs.config.config as ImageProcess & { ArgsEscaped?: boolean };
    expect(ArgsEscaped).toBe(true);
    expect(ours.config.config).toEqual({ ...config, ...(OnBuild ? { OnBuild } : {}) });
    const { architecture, os, author } = theirs.config;
    expect(ours.config).toMatchObject({ architecture, os, author });
    expect(Object.keys(ours.config).sort()).toEqual(Object.keys(theirs.config).sort());
    expect(historyLines(ours)).toEqual(historyLines(theirs));
  });

  test("skopeo copies an image to an OCI layout and into Docker Engine as it is", async () => {
    expect((await copied("web:1")).digest).toBe(digests.get("web:1"));
    await engines.skopeo("copy", "--quiet", ...engines.toDocker, `oci:${engines.dir}/web-1`, "docker-daemon:copied:1");
    const id = async (name: string) => engines.docker("image", "inspect", "--format={{.Id}}", name);
    expect(await id("copied:1")).toBe(await id(at("web:1")));
  });

  test("docker inspect and docker history show what they show of BuildKit's", async () => {
    const inspect = async (name: string) => {
      const text = await engines.docker("image", "inspect", name);
      const [{ Config, Architecture, Os, Author, DockerVersion }] = JSON.parse(text) as [Record<string, unknown>];
      return { Config: { ...(Config as object), ArgsEscaped: true }, Architecture, Os, Author, DockerVersion };
    };
    expect(await inspect(at("web:1"))).toEqual(await inspect("web:1"));
    const format = ["--no-trunc", "--format={{.CreatedBy}}"];
    const history = async (name: string) => (await engines.docker("history", ...format, name)).split("\n").map(asNow);
    expect(await history(at("web:1"))).toEqual(await history("web:1"));
  });

  test("docker run and podman run them", async () => {
    const docker = (tag: string) => engines.docker("run", "--rm", "--network=none", at(tag));
    await engines.podman("pull", "--quiet", "--tls-verify=false", at("web:1"));
    expect(await engines.podman("run", ...engines.podmanRun, at("web:1"))).toBe(printed);
    expect(await docker("web:1")).toBe(printed);
    expect(await docker("child:1")).toBe("triggered\na\n");
    expect(await docker("newer:1")).toBe("script\nfirst\nsecond\na.txt\nsub\nwith space.txt\n");
  });

  test("layers in zstd are unpacked by engines that know it, and copied as they are", async () => {
    await build("zstd:1", 'FROM base:1\nRUN echo small > /f\nCMD ["/bin/cat", "/f"]\n', [], "zstd");
    // Pulling it unpacks it, each layer checked against the config. (To run one takes podman 20 s here.)
    await engines.podman("pull", "--quiet", "--tls-verify=false", at("zstd:1"));
    expect((await copied("zstd:1")).digest).toBe(digests.get("zstd:1"));
  });

  test("podman inspect and podman history show what they show of BuildKit's", async () => {
    await saved("web:1");
    await engines.podman("pull", "--quiet", `docker-archive:${engines.dir}/saved.tar`);
    const [own, other] = [at("web:1"), "localhost/web:1"];
    const inspect = async (name: string) => {
      const text = await engines.podman("image", "inspect", name);
      const [{ Config, Healthcheck }] = JSON.parse(text) as [{ Config: object; Healthcheck?: object }];
      return { Config: { ...Config, ArgsEscaped: true }, Healthcheck };
    };
    const { Config, Healthcheck } = await inspect(other);
    // podman takes a health check from Docker's media types only.
    expect(Healthcheck).toMatchObject({ Retries: 2 });
    expect(await inspect(own)).toEqual({ Config });
    const format = ["--no-trunc", "--format={{.CreatedBy}}"];
    const history = async (name: string) => (await engines.podman("history", ...format, name)).split("\n").map(asNow);
    expect(await history(own)).toEqual(await history(other));
  });

  test("newer constructs: the history is what BuildKit's sources say", async () => {
    const { config } = await copied("newer:1");
    expect(config.history?.slice(3).map(({ created_by }) => created_by)).toEqual([
      "RUN /bin/sh -c echo script > /script\n",
      "RUN /bin/sh -c <<-A cat > /joined; cat >> /joined <<B\n\tfirst\nA\nsecond\nB",
      "COPY --chmod=u=rwx,go=rx <<EOF /usr/bin/tool",
      "COPY --parents dir/./sub *.txt /srv/",
      "HEALTHCHECK {Test:[CMD /bin/true] Interval:0s Timeout:0s StartPeriod:5s StartInterval:500ms Retries:0}",
      'CMD ["/usr/bin/tool"]',
    ]);
  });

  test("archives: what docker save and podman save write is loaded and runs, and they load what Berth saves", async () => {
    const headers = { authorization: `Bearer ${host.project.tokens.deployer}`, "content-type": "application/x-tar" };
    await engines.podman("pull", "--quiet", "--tls-verify=false", at("web:1"));
    for (const [engine, save] of [
      ["docker", ["save", "--output"]],
      ["podman", ["save", "--quiet", "--format=docker-archive", "--output"]],
      ["podman", ["save", "--quiet", "--format=oci-archive", "--output"]],
    ] as const) {
      const file = join(engines.dir, `${engine}-${String(save.at(2))}.tar`);
      await engines[engine](...save, file, at("web:1"));
      const query = new URLSearchParams({ reference: "loaded:1" });
      const body = readFileSync(file);
      const answer = await host.api.app.request(`/v1/images/archive?${query.toString()}`, {
        method: "POST",
        headers,
        body,
      });
      expect(answer.status, await answer.clone().text()).toBe(201);
      expect(await ran("loaded:1"), engine).toBe(printed);
    }
    const saved = await host.api.app.request("/v1/images/archive?reference=web:1&reference=child:1", { headers });
    const file = join(engines.dir, "berth.tar");
    await writeFile(file, Buffer.from(await saved.arrayBuffer()));
    await engines.docker("load", "--quiet", "--input", file);
    expect(await engines.docker("run", "--rm", "--network=none", "web:1")).toBe(printed);
    expect(await engines.podman("load", "--quiet", "--input", file)).toContain("web:1");
    const directory = join(engines.dir, "from-archive");
    await engines.skopeo("copy", "--quiet", `oci-archive:${file}:web:1`, `oci:${directory}`);
    expect((await readLayout(directory)).digest).toBe(digests.get("web:1"));
  });

  test("docker, podman and skopeo pull from Berth itself and push to it, with a token; what they push runs", async () => {
    const server = await listen(host.api.app, { host: "127.0.0.1", port: 0 });
    try {
      const berth = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
      const image = `${berth}/default/web:1`;
      await expect(engines.docker("pull", "--quiet", image)).rejects.toThrow();
      await engines.docker("login", "--username=any", `--password=${host.project.tokens.viewer}`, berth);
      await engines.docker("pull", "--quiet", image);
      expect(await engines.docker("run", "--rm", "--network=none", image)).toBe(printed);
      const credentials = `any:${host.project.tokens.viewer}`;
      await engines.podman("pull", "--quiet", "--tls-verify=false", `--creds=${credentials}`, image);
      const directory = join(engines.dir, "from-berth");
      const from = ["--src-tls-verify=false", `--src-creds=${credentials}`, `docker://${image}`];
      await engines.skopeo("copy", "--quiet", ...from, `oci:${directory}`);
      expect((await readLayout(directory)).digest).toBe(digests.get("web:1"));

      // As a viewer nobody pushes.
      await engines.docker("tag", "web:1", `${berth}/default/by-docker:1`);
      await expect(engines.docker("push", `${berth}/default/by-docker:1`)).rejects.toThrow(/denied|DENIED|role/);
      const deployer = host.project.tokens.deployer;
      await engines.docker("login", "--username=any", `--password=${deployer}`, berth);
      await engines.docker("push", `${berth}/default/by-docker:1`);
      await engines.podman("tag", image, `${berth}/default/by-podman:1`);
      await engines.podman(
        "push",
        "--quiet",
        "--tls-verify=false",
        `--creds=any:${deployer}`,
        `${berth}/default/by-podman:1`,
      );
      const to = ["--dest-tls-verify=false", `--dest-creds=any:${deployer}`];
      await engines.skopeo("copy", "--quiet", ...to, `oci:${directory}`, `docker://${berth}/default/by-skopeo:1`);
      for (const name of ["by-docker:1", "by-podman:1", "by-skopeo:1"]) expect(await ran(name), name).toBe(printed);
      const copied = await host.ask<{ digest: string }>("GET", "/v1/images/by-skopeo%3A1");
      expect(copied.body.digest).toBe(digests.get("web:1"));
    } finally {
      await closeServer(server, 0);
    }
  });
});
