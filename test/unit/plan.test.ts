import { expect, test } from "vitest";
import { parseDockerfile } from "../../src/build/dockerfile.ts";
import type { PlanOptions } from "../../src/build/options.ts";
import { missingImages, planBuild } from "../../src/build/plan.ts";
import type { BuildPlan, Step } from "../../src/build/step.ts";
import { BerthError } from "../../src/core/errors.ts";
import type { ImageConfig } from "../../src/core/image.ts";
import { parseNamedContext } from "../../src/core/named-context.ts";
import { planOptions } from "../support/plan-options.ts";

const image = (config: ImageConfig["config"] = {}): ImageConfig => ({
  architecture: "amd64",
  os: "linux",
  config,
  rootfs: { type: "layers", diff_ids: [] },
});
const debian = image({ Env: ["PATH=/usr/bin:/bin", "LANG=C"], Cmd: ["bash"] });

function plan(lines: readonly string[], more: Partial<PlanOptions> = {}, base: ImageConfig = debian): BuildPlan {
  const dockerfile = parseDockerfile(lines.join("\n"));
  const images = new Map<string, ImageConfig>();
  for (let missing = missingImages(dockerfile, planOptions(more), images); missing.length > 0; ) {
    for (const { key } of missing) images.set(key, base);
    missing = missingImages(dockerfile, planOptions(more), images);
  }
  return planBuild(dockerfile, planOptions(more), images);
}

function step<K extends Step["kind"]>(built: BuildPlan, kind: K, which = 0): Extract<Step, { kind: K }> {
  const found = built.stages.flatMap(({ steps }) => steps).filter((one) => one.kind === kind)[which];
  if (found === undefined) throw new Error(`no ${kind} step`);
  return found as Extract<Step, { kind: K }>;
}

test("only the stages that the target needs are planned, in order", () => {
  const built = plan([
    "FROM debian AS a",
    "FROM debian AS unused",
    "FROM a AS b",
    "COPY --from=a /x /x",
    "FROM scratch",
    "COPY --from=b /x /y",
    "COPY --from=0 /x /z",
  ]);
  expect(built.stages.map(({ number, name, dependsOn }) => [number, name, dependsOn])).toEqual([
    [0, "a", []],
    [2, "b", [0]],
    [3, "stage-3", [0, 2]],
  ]);
  expect(built.target).toBe(3);
  expect(built.images).toEqual(["debian linux/amd64"]);
  expect(plan(["FROM debian AS a", "FROM a AS b"], { target: "A" }).target).toBe(0);
  expect(plan(["FROM debian AS a", "FROM a AS b"], { target: "0" }).target).toBe(0);
});

test("a target that does not exist is named, with a suggestion", () => {
  expect(() => plan(["FROM debian AS build"], { target: "biuld" })).toThrow(/no stage "biuld"; did you mean build\?/);
});

test("a stage reads earlier stages only: no cycle can be written", () => {
  expect(() => plan(["FROM debian AS a", "COPY --from=b / /", "FROM a AS b"])).toThrow(
    /:2:1: the stage "b" must stand before/,
  );
  expect(() => plan(["FROM debian AS a", "COPY --from=a / /"])).toThrow(/must stand before/);
  expect(() => plan(["FROM debian AS a", "COPY --from=7 / /"])).toThrow(/no stage number 7/);
});

test("global ARGs reach FROM, and a stage only by its own ARG", () => {
  const built = plan(["ARG V=12", "ARG IMAGE=debian:$V", "FROM $IMAGE", "RUN one", "ARG V", "ARG W=${V}x", "RUN two"], {
    args: { V: "13" },
  });
  expect(built.images).toEqual(["debian:13 linux/amd64"]);
  expect(step(built, "run", 0).env).toEqual(["PATH=/usr/bin:/bin", "LANG=C"]);
  expect(step(built, "run", 1).env).toEqual(["PATH=/usr/bin:/bin", "LANG=C", "V=13", "W=13x"]);
  expect(step(built, "run", 1).createdBy).toBe("RUN |2 V=13 W=13x /bin/sh -c two");
});

test("platform arguments exist once they are declared", () => {
  const built = plan(["FROM --platform=$BUILDPLATFORM debian AS last", "ARG TARGETARCH TARGETSTAGE", "RUN x"], {
    platform: { os: "linux", architecture: "arm64" },
    target: "last",
  });
  expect(built.images).toEqual(["debian linux/amd64"]);
  expect(step(built, "run").env).toEqual(expect.arrayContaining(["TARGETARCH=arm64", "TARGETSTAGE=last"]));
});

test("proxies reach RUN without being declared, and no key, history or config", () => {
  const built = plan(["FROM debian", "RUN x"], { args: { HTTP_PROXY: "http://p", other: "1" } });
  expect(step(built, "run")).toMatchObject({ proxyEnv: ["HTTP_PROXY=http://p"], createdBy: "RUN /bin/sh -c x" });
  expect(step(built, "run").env).not.toContain("HTTP_PROXY=http://p");
  expect(built.warnings).toMatchObject([
    { check: "UnusedBuildArg", message: "no ARG declares the build argument other" },
  ]);
});

test("ENV expands with the variables from before the instruction, in what follows and in the image", () => {
  const built = plan(["FROM debian", "ENV a=1", "ENV a=2 b=$a c=\"x y\" d='$a'", "WORKDIR /$b", "WORKDIR ../up"]);
  const config = built.stages[0]?.config;
  expect(config?.Env).toEqual(["PATH=/usr/bin:/bin", "LANG=C", "a=2", "b=1", "c=x y", "d=$a"]);
  expect(step(built, "workdir", 1).path).toBe("/up");
  expect(config?.WorkingDir).toBe("/up");
});

test("the image's config, and the rules between CMD and ENTRYPOINT", () => {
  const built = plan([
    "FROM debian",
    "MAINTAINER me",
    'ENTRYPOINT ["/app"]',
    "EXPOSE 80 53/UDP 8000-8001",
    "VOLUME /data /more",
    "USER 1:2",
    "STOPSIGNAL SIGQUIT",
    "LABEL a=1 b=two",
    "HEALTHCHECK --interval=1m30s --retries=2 CMD curl -f localhost",
    'SHELL ["/bin/bash", "-c"]',
    "ONBUILD COPY . /app",
  ]);
  const stage = built.stages[0];
  expect(stage?.author).toBe("me");
  expect(stage?.config).toEqual({
    Env: ["PATH=/usr/bin:/bin", "LANG=C"],
    Entrypoint: ["/app"],
    ExposedPorts: { "80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {} },
    Volumes: { "/data": {}, "/more": {} },
    User: "1:2",
    StopSignal: "SIGQUIT",
    Labels: { a: "1", b: "two" },
    Healthcheck: { Test: ["CMD-SHELL", "curl -f localhost"], Interval: 90e9, Retries: 2 },
    Shell: ["/bin/bash", "-c"],
    OnBuild: ["COPY . /app"],
  });
  expect(plan(["FROM debian", "CMD x", 'ENTRYPOINT ["e"]']).stages[0]?.config.Cmd).toEqual(["/bin/sh", "-c", "x"]);
});

test("labels of the request are on the result only", () => {
  const built = plan(["FROM debian AS a", "FROM a", "LABEL x=1"], { labels: { y: "2" } });
  expect(built.stages.map(({ config }) => config.Labels)).toEqual([undefined, { x: "1", y: "2" }]);
});

test("triggers of a base run first, may read further images, and are gone afterwards", () => {
  const base = image({ OnBuild: ["COPY --from=tools /t /t", "ENV x=1"] });
  const dockerfile = parseDockerfile("FROM base\nRUN last");
  expect(missingImages(dockerfile, planOptions(), new Map()).map(({ reference }) => reference)).toEqual(["base"]);
  const built = plan(["FROM base", "RUN last"], {}, base);
  expect(built.images).toEqual(["base linux/amd64", "tools linux/amd64"]);
  expect(built.stages[0]?.steps.map(({ kind, at }) => [kind, at.line])).toEqual([
    ["from", 1],
    ["copy", 1],
    ["meta", 1],
    ["run", 2],
  ]);
  expect(built.stages[0]?.config.OnBuild).toBeUndefined();
});

test("a stage's own ONBUILD runs in the stage built on it", () => {
  const built = plan(["FROM debian AS a", "ONBUILD RUN later", "FROM a"]);
  expect(built.stages.map(({ steps }) => steps.map(({ kind }) => kind))).toEqual([
    ["from", "meta"],
    ["from", "run"],
  ]);
});

test("COPY: destinations, flags and history", () => {
  const built = plan([
    "FROM debian",
    "WORKDIR /app",
    "ARG U=7",
    "COPY --chown=$U:g --chmod=u=rwX a ../b/c sub/",
    "ADD x y",
  ]);
  expect(step(built, "copy", 0)).toMatchObject({
    origin: { kind: "context" },
    sources: ["/a", "/b/c"],
    destination: "/app/sub",
    intoDirectory: true,
    chown: "7:g",
    chmod: "u=rwX",
    unpack: false,
    createdBy: "COPY --chown=7:g --chmod=u=rwX a ../b/c sub/",
  });
  expect(step(built, "copy", 1)).toMatchObject({ destination: "/app/y", intoDirectory: false, unpack: true });
});

test("heredocs: a script, a file of its own, lines for the shell, and files of COPY", () => {
  const built = plan([
    "FROM debian",
    "ENV x=1",
    "RUN <<EOF",
    "set -e",
    "EOF",
    "RUN <<PY",
    "#!/usr/bin/python3",
    "print(1)",
    "PY",
    "RUN cat <<A - <<'B'",
    "a",
    "A",
    "b",
    "B",
    "COPY <<-one <<'two' /dir/",
    '\t$x \\$x "q"',
    "one",
    "$x",
    "two",
  ]);
  expect(step(built, "run", 0).argv).toEqual(["/bin/sh", "-c", "set -e\n"]);
  expect(step(built, "run", 1)).toMatchObject({
    argv: ["/.heredoc/PY"],
    script: { path: "/.heredoc/PY", content: "#!/usr/bin/python3\nprint(1)\n" },
  });
  expect(step(built, "run", 2).argv[2]).toBe("cat <<A - <<'B'\na\nA\nb\nB");
  expect(step(built, "copy").inline).toEqual([
    { name: "one", content: '1 $x "q"\n' },
    { name: "two", content: "$x\n" },
  ]);
});

test("mounts", () => {
  const built = plan([
    "FROM debian AS a",
    "FROM debian",
    "WORKDIR /w",
    "RUN --mount=target=/src --mount=type=cache,target=c,sharing=locked,uid=5 --mount=from=a,src=/x,dst=/y,rw --mount=type=secret,id=s,env=S --mount=type=tmpfs,target=/t,size=64m --mount=type=ssh --network=none true",
    "RUN --mount=from=a --mount=type=secret,id=dir/key x",
  ]);
  // Where a mount says no target it is the working directory.
  expect(step(built, "run", 1).mounts).toMatchObject([{ target: "/w" }, { target: "/run/secrets/key" }]);
  expect(step(built, "run")).toMatchObject({
    network: "none",
    mounts: [
      { type: "bind", target: "/src", origin: { kind: "context" }, source: "/", readOnly: true },
      { type: "cache", target: "/w/c", id: "c", sharing: "locked", uid: 5, readOnly: false },
      { type: "bind", target: "/y", origin: { kind: "stage", stage: 0 }, source: "/x", readOnly: false },
      { type: "secret", id: "s", target: null, env: "S" },
      { type: "tmpfs", target: "/t", size: 64 * 2 ** 20 },
    ],
  });
  expect(built.stages.map(({ number }) => number)).toEqual([0, 1]);
  const many = plan(["FROM debian", `RUN ${"--mount=type=tmpfs,target=/t ".repeat(100)}x`]);
  expect(step(many, "run").mounts).toHaveLength(100);
});

const refused: [string, RegExp][] = [
  ["WORKDIR /proc/self/fd/7", /:2:1: WORKDIR can't be in "\/proc\/self\/fd\/7"/],
  ["RUN --network=host x", /:2:5: --network=host is not allowed: the host's network/],
  ["RUN --security=insecure x", /:2:5: only --security=sandbox/],
  ["RUN --mount=type=cahce,target=/x x", /:2:5: there is no mount type "cahce"; did you mean cache\?/],
  ["RUN --mount=type=bind x", /can't cover the root/],
  ["RUN --mount=type=ssh,required x", /no ssh agent/],
  [`RUN ${"--mount=type=tmpfs,target=/t ".repeat(101)}x`, /a RUN may have up to 100 mounts/],
  ["COPY https://example.com/x /x", /COPY takes no URL; ADD does/],
  ["COPY --chmod=999 a b", /--chmod must be octal/],
  ["COPY --from=$x a b", /--from is not expanded/],
  ["EXPOSE 70000", /no port/],
  ["STOPSIGNAL SIGNOPE", /no signal/],
  ["ENV x=${y?must be given}", /must be given/],
  ["LABEL x=${y", /substitution/],
  ["USER", /USER needs an argument/],
  ["VOLUME $unset", /path of VOLUME is empty/],
  ["ONBUILD FROM x", /:2:9: ONBUILD FROM is not allowed/],
  ["ONBUILD RUNN x", /did you mean RUN\?/],
];
test.each(refused)("%s is refused with its place", (line, message) => {
  expect(() => plan(["FROM debian", line])).toThrow(message);
});

test("an empty base is explained", () => {
  expect(() => plan(["ARG B", "FROM $B"])).toThrow(/:2:1: the base "\$B" is empty/);
});

test("repeated doubling of a value ends at the kernel's limit for one string", () => {
  const lines = ["FROM debian", "ENV a=0123456789", ...Array.from({ length: 40 }, () => "ENV a=$a$a")];
  expect(() => plan(lines)).toThrow(/has more than 131072 characters/);
});

test("SOURCE_DATE_EPOCH is given, defaulted, or the context's time, and a number where it is declared", () => {
  const declared = ["ARG SOURCE_DATE_EPOCH=5", "FROM debian", "ARG SOURCE_DATE_EPOCH", "RUN x"];
  expect(plan(["FROM debian"]).epoch).toBeNull();
  expect(plan(["FROM debian"], { args: { SOURCE_DATE_EPOCH: "7" } }).epoch).toBe(7);
  expect(plan(declared).epoch).toBe(5);
  const dated = plan(declared, { args: { SOURCE_DATE_EPOCH: "context" }, contextTime: 9 });
  expect(dated.epoch).toBe(9);
  expect(step(dated, "run").env).toContain("SOURCE_DATE_EPOCH=9");
  expect(plan(["FROM debian"], { args: { SOURCE_DATE_EPOCH: "context" } }).epoch).toBeNull();
  expect(() => plan(["ARG SOURCE_DATE_EPOCH=today", "FROM debian"])).toThrow(/:1:1: .* seconds since 1970 or context/);
});

test("sources of ADD that are elsewhere", () => {
  const remotes = (line: string) => step(plan(["FROM debian", line]), "copy").remotes;
  expect(remotes("ADD https://h.example/a%20b.tar?x=1#f /d/")).toEqual([
    { kind: "http", url: "https://h.example/a%20b.tar?x=1", name: "a b.tar", unpack: false },
  ]);
  expect(remotes("ADD --unpack=true https://h.example/ /d")).toMatchObject([{ name: "", unpack: true }]);
  const git = { kind: "git", url: "https://h.example/r.git", ref: null, subdirectory: null, keepGitDir: false };
  expect(remotes("ADD https://h.example/r.git /d")).toEqual([git]);
  expect(remotes("ADD https://h.example/r.git#:docs/ /d")).toEqual([{ ...git, subdirectory: "docs" }]);
  expect(remotes("ADD https://h.example/r.git?tag=v1&subdir=a /d")).toEqual([
    { ...git, ref: "refs/tags/v1", subdirectory: "a" },
  ]);
  expect(remotes("ADD --keep-git-dir https://h.example/r.git#refs/pull/1/head /d")).toEqual([
    { ...git, ref: "refs/pull/1/head", keepGitDir: true },
  ]);
});

test.each([
  ["ADD https://h.example /d/", /ends in no file name/],
  ["ADD git@h.example:team/r.git /d", /by ssh are not supported/],
  ["ADD https://h.example/r.git#a..b /d", /branch or tag/],
  ["ADD https://h.example/r.git#main:../x /d", /without `\.\.`/],
  ["ADD https://h.example/r.git?depth=1 /d", /are known/],
  ["ADD --checksum=sha256:12 https://h.example/x /d", /must be sha256: and 64/],
  ["ADD --checksum=sha256:12 https://h.example/r.git /d", /must be a commit id/],
  ["ADD --checksum=abc x /d", /needs exactly one source, a URL/],
])("%s is refused with its line", (line, message) => {
  expect(() => plan(["FROM debian", line])).toThrow(message);
  expect(() => plan(["FROM debian", line])).toThrow(/^Dockerfile:2:/);
});

test("a named context stands in for an image or a stage of its name; files can be copied, not built on", () => {
  const lines = [
    "FROM base AS a",
    "FROM debian AS tools",
    "FROM a",
    "COPY --from=Tools /x /x",
    "COPY --from=src / /src",
  ];
  const contexts = {
    base: { kind: "image" as const, reference: "debian:13" },
    tools: { kind: "image" as const, reference: "busybox" },
    src: { kind: "tar" as const, url: "https://h.example/src.tar.gz" },
  };
  const built = plan(lines, { contexts });
  expect(built.images.toSorted()).toEqual(["busybox linux/amd64", "debian:13 linux/amd64"]);
  expect(built.stages.map(({ name }) => name)).toEqual(["a", "stage-2"]);
  expect(step(built, "copy", 0).origin).toEqual({ kind: "image", key: "busybox linux/amd64" });
  expect(step(built, "copy", 1).origin).toEqual({ kind: "files", source: contexts.src });
  expect(() => plan(["FROM src"], { contexts })).toThrow(/:1:1: the named context "src" has files to copy/);
});

test.each([
  ["docker-image://debian:12", { kind: "image", reference: "debian:12" }],
  ["https://h.example/r.git#main:docs", { kind: "git", ref: "main", subdirectory: "docs" }],
  ["https://h.example/x.tar.gz?a=b", { kind: "tar", url: "https://h.example/x.tar.gz?a=b" }],
])("the named context %s", (text, expected) => {
  expect(parseNamedContext(text)).toMatchObject(expected);
});
test.each([
  "",
  "../dir",
  "oci-layout://x",
  "docker-image://",
  "docker-image://A B",
  "file:///etc",
  "https://h example/x",
])("the named context %j is refused", (text) => {
  expect(() => parseNamedContext(text)).toThrow(BerthError);
});

const histories: [string, string | null][] = [
  ["ARG GIVEN", "ARG GIVEN=1"],
  ["ARG a=1 b=$a c", "ARG a=1 b=1 c"],
  ["ARG GIVEN=${unset:?needless}", "ARG GIVEN=1"],
  ["EXPOSE 80 53/udp 8000-8001/tcp 443/TCP", "EXPOSE [443/tcp 53/udp 80/tcp 8000/tcp 8001/tcp]"],
  ["HEALTHCHECK NONE", "HEALTHCHECK {Test:[NONE] Interval:0s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}"],
  [
    "HEALTHCHECK --interval=1h2m --timeout=1.5s --start-period=1m30s --start-interval=500ms --retries=2 CMD a b",
    "HEALTHCHECK {Test:[CMD-SHELL a b] Interval:1h2m0s Timeout:1.5s StartPeriod:1m30s StartInterval:500ms Retries:2}",
  ],
  ["ONBUILD RUN x", null],
  ["CMD []", "CMD []"],
  ['CMD ["a", "b c"]', 'CMD ["a" "b c"]'],
  [String.raw`CMD ["a\u0001\u0007\u007fé\u00a0😀", "\"\\"]`, String.raw`CMD ["a\x01\a\x7fé\u00a0😀" "\"\\"]`],
  ["VOLUME /a /b", "VOLUME [/a /b]"],
  ["COPY --chown=1:2 --chmod=644 a b /d/", "COPY --chown=1:2 --chmod=644 a b /d/"],
  ["WORKDIR $unset", "WORKDIR /"],
  ["COPY a $unset", "COPY a ./"],
  ["ENV a=1 b='x y'", "ENV a=1 b=x y"],
];
test.each(histories)("%s is in the history as BuildKit writes it", (line, expected) => {
  const built = plan(["FROM debian", line], { args: { GIVEN: "1" } });
  expect(built.stages[0]?.steps[1]?.createdBy).toBe(expected);
});
