import { readdirSync } from "node:fs";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type BuildWorker, busybox, startBuildWorker } from "../support/builds.ts";
import { entry } from "../support/image.ts";

let worker: BuildWorker;

beforeAll(async () => {
  worker = await startBuildWorker();
  const lines = ["FROM scratch", "COPY busybox /bin/busybox", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]'];
  expect((await worker.build("base", lines, { busybox: busybox() })).error).toBeNull();
});
afterAll(() => worker.stop());
afterEach(() => {
  expect(worker.leftovers()).toEqual([]);
});

type Answer = Awaited<ReturnType<BuildWorker["build"]>>;
const said = ({ log }: Answer) => log.filter((line) => line.startsWith("stdout: ")).map((line) => line.slice(8));
const filesOf = ({ files }: Answer) => Object.keys(files).filter((path) => !/^\/(?:bin)?(?:\/|$)/.test(path));

test("mounts are there while the step runs, and neither they nor what they are mounted over are in the layer", async () => {
  const answer = await worker.build(
    "kinds",
    [
      "FROM base AS made",
      "RUN mkdir -p /out/sub && echo built > /out/sub/f && chown 7:8 /out/sub/f && ln -s sub /out/link",
      "FROM base",
      "RUN mkdir /real && chmod 2770 /real && chown 5:6 /real && ln -s /real /alias",
      "RUN --mount=type=tmpfs,target=/mem/a,size=1m \\",
      "    --mount=type=bind,target=/ctx \\",
      "    --mount=type=bind,source=d/f,target=/alias/one \\",
      "    --mount=type=bind,from=made,source=/out/link,target=/alias/tree \\",
      "    --mount=type=cache,target=/alias/cache \\",
      "    --mount=type=secret,id=token,uid=3,gid=4,mode=0440 \\",
      "    cat /ctx/a /real/one /alias/tree/f && stat -c '%a %u:%g' /real/tree/f /real /run/secrets/token && \\",
      "    echo x > /mem/a/x && echo y > /real/cache/y && echo kept > /real/kept; mount | grep -c ' /mem/a .*size=1024k'",
      "RUN --mount=type=tmpfs,target=/nothing --mount=type=tmpfs,target=/real/nothing true",
    ],
    [entry("a", { content: "context\n" }), entry("d/f", { content: "file\n" })],
    { secrets: { token: "s3cret-value" } },
  );
  expect(answer.error).toBeNull();
  expect(said(answer)).toEqual(["context", "file", "built", "644 7:8", "2770 5:6", "440 3:4", "1"]);
  expect(filesOf(answer)).toEqual(["/alias", "/real", "/real/kept"]);
  expect(answer.files["/real"]).toBe("2770 5:6");
});

test("bind mounts are read-only, or what is written to them is forgotten; what is in them is part of the key", async () => {
  const read = (content: string, command: string, option = "") =>
    worker.build("bind", ["FROM base", `RUN --mount=type=bind,target=/c${option} ${command}`], {
      a: content,
      "b/": "",
    });
  const refused = await read("1", "echo x > /c/a");
  expect(refused.error?.message).toContain("Read-only file system");
  const written = await read("1", "echo x > /c/a && rm -r /c/b && mkdir /c/n && cat /c/a", ",rw");
  expect(written.error).toBeNull();
  expect(said(written)).toEqual(["x"]);
  expect(filesOf(written)).toEqual([]);
  const cached = ({ steps }: Answer) => steps.at(-1)?.cached;
  expect(cached(await read("1", "cat /c/a"))).toBe(false);
  expect(cached(await read("1", "cat /c/a"))).toBe(true);
  expect(cached(await read("2", "cat /c/a"))).toBe(false);
  // Within a bind mount there may be other mounts, also where it has no directory.
  const nested = ["FROM base", "RUN --mount=target=/c/b/new,type=tmpfs --mount=target=/c touch /c/b/new/x; ls /c /c/b"];
  expect(said(await worker.build("nested", nested, { "b/": "" }))).toEqual([
    "/c:",
    "Dockerfile",
    "b",
    "",
    "/c/b:",
    "new",
  ]);
});

test("a secret is a file in memory or in the environment, and nowhere else", async () => {
  const token = "hunter2-hunter2-hunter2";
  const lines = [
    "FROM base",
    "RUN --mount=type=secret,id=token,target=/root/.npmrc --mount=type=secret,id=token,env=TOKEN,required \\",
    "    cat /root/.npmrc; echo; echo is $TOKEN; df -T /root/.npmrc | tail -1 | awk '{print $2}'; cp /root/.npmrc /copy && rm /copy",
    'RUN test ! -e /root/.npmrc && test -z "$TOKEN"',
  ];
  const answer = await worker.build("secret", lines, {}, { secrets: { token } });
  expect(answer.error).toBeNull();
  // What the step prints of it the log hides.
  expect(said(answer)).toEqual(["***", "is ***", "tmpfs"]);
  expect(filesOf(answer)).toEqual([]);
  expect(JSON.stringify(answer)).not.toContain(token);
  expect(worker.find(token)).toEqual([]);
  // The search finds what a step leaves.
  const careless = await worker.build(
    "careless",
    ["FROM base", `RUN --mount=type=secret,id=token cat /run/secrets/token > /left`],
    {},
    { secrets: { token } },
  );
  expect(careless.error).toBeNull();
  expect(worker.find(token)).not.toEqual([]);
  // Another value is no reason to run the step again.
  const other = await worker.build("secret", lines, {}, { secrets: { token: "another-one" } });
  expect(other.steps.at(-2)?.cached).toBe(true);
});

test("a secret that is required and missing is named; one that is not required is just not there", async () => {
  const missing = await worker.build("missing", ["FROM base", "RUN --mount=type=secret,id=npm,required=true true"]);
  expect(missing.error).toMatchObject({ code: "secret_missing", facts: { line: 2 } });
  expect(missing.error?.message).toContain('"npm"');
  const absent = await worker.build("absent", [
    "FROM base",
    "RUN --mount=type=secret,id=npm ls /run/secrets 2>&1; true",
  ]);
  expect(absent.error).toBeNull();
});

test("a cache is kept from build to build, for its project alone, and keeps its owners", async () => {
  const build = (command: string, project = "prj_one", options = "") =>
    worker.build(
      "cache",
      ["FROM base", `RUN --mount=type=cache,target=/cache${options} ${command}`],
      {},
      { project, noCache: true },
    );
  const first = await build(
    "echo 1 > /cache/n; chown 12:34 /cache/n; stat -c '%a %u:%g' /cache",
    "prj_one",
    ",mode=0750,uid=9",
  );
  expect(said(first)).toEqual(["750 9:0"]);
  expect(said(await build("cat /cache/n && stat -c %u:%g /cache/n"))).toEqual(["1", "12:34"]);
  expect(said(await build("ls /cache; echo done", "prj_two"))).toEqual(["done"]);
  expect(said(await build("ls /cache; echo done", "prj_one", ",id=other"))).toEqual(["done"]);
  expect((await build("echo x > /cache/x", "prj_one", ",ro")).error?.message).toContain("Read-only file system");
});

test("an empty cache begins with what it is made from", async () => {
  const lines = [
    "FROM base AS seed",
    "RUN mkdir -p /s/d && echo seed > /s/d/f && chown 7:8 /s/d/f && chmod 4755 /s/d/f && ln -s /etc/passwd /s/link",
    "FROM base",
    "RUN --mount=type=cache,target=/c,from=seed,source=/s,uid=5 cat /c/d/f; stat -c '%a %u:%g' /c/d/f; readlink /c/link; stat -c %u /c; echo more > /c/more",
    "RUN --mount=type=cache,target=/c,from=seed,source=/s ls /c",
  ];
  const answer = await worker.build("seed", lines);
  expect(answer.error).toBeNull();
  expect(said(answer)).toEqual(["seed", "4755 7:8", "/etc/passwd", "5", "d", "link", "more"]);
});

test("shared, locked and private caches of two steps at the same time", async () => {
  const together = (sharing: string) =>
    worker.build(`sharing-${sharing}`, [
      ...["one", "two"].flatMap((name) => [
        `FROM base AS ${name}`,
        `RUN --mount=type=cache,id=${sharing},target=/c,sharing=${sharing} touch /c/${name}; sleep 0.7; echo ${name} $(ls /c); sleep 0.3; rm /c/${name}`,
      ]),
      "FROM base",
      "COPY --from=one /bin/busybox /1",
      "COPY --from=two /bin/busybox /2",
    ]);
  expect(said(await together("shared")).sort()).toEqual(["one one two", "two one two"]);
  expect(said(await together("locked")).sort()).toEqual(["one one", "two two"]);
  expect(said(await together("private")).sort()).toEqual(["one one", "two two"]);
});

test("a step finds the caches free that the step before it has used", async () => {
  const mount = "--mount=type=cache,id=next,target=/c,sharing=private";
  const steps = ["one", "two", "three"].map((name) => `RUN ${mount} touch /c/${name}; echo $(ls /c)`);
  const answer = await worker.build("next", ["FROM base", ...steps]);
  expect(answer.error).toBeNull();
  expect(said(answer)).toEqual(["one", "one two", "one three two"]);
  // A project may use 16 at the same time.
  const many = (step: string) =>
    Array.from({ length: 10 }, (_, n) => `--mount=type=cache,id=${step}${String(n)},target=/c${String(n)}`).join(" ");
  const busy = ["a", "b", "c"].map((step) => `RUN ${many(step)} true`);
  expect((await worker.build("many", ["FROM base", ...busy])).error).toBeNull();
});

test("a step that mounts one cache twice, by what are two stages of the same content, does not wait for itself", async () => {
  const mount = (stage: string) =>
    `--mount=type=cache,id=twice,sharing=locked,from=${stage},source=/bin,target=/${stage}`;
  const answer = await worker.build("twice", [
    "FROM base AS one",
    "FROM base AS two",
    "FROM base",
    `RUN ${mount("one")} ${mount("two")} echo x > /one/x && cat /two/x`,
  ]);
  expect(answer.error).toBeNull();
  expect(said(answer)).toEqual(["x"]);
});

test("what a hostile step leaves in a cache harms neither the host nor who mounts it next", async () => {
  const build = (tag: string, project: string, lines: string[]) =>
    worker.build(tag, ["FROM base", ...lines], {}, { project, noCache: true });
  const mount = "RUN --mount=type=cache,id=trap,target=/c";
  const set = await build("trap", "prj_evil", [
    `${mount} cp /bin/busybox /c/su && chown 0:0 /c/su && chmod 6755 /c/su && ln -s / /c/root && ln -s ../../../../../tmp /c/up && mkfifo /c/p && ! mknod /c/d b 8 0 2>&1`,
    // The directory itself can't be made something else.
    `${mount} ! rmdir /c 2>/dev/null && ! mv /c /gone 2>/dev/null; ln -sfn / /c/../c2; chmod 777 /c`,
  ]);
  expect(set.error).toBeNull();
  // Where the links aim at there is something to find.
  expect(readdirSync("/tmp").some((name) => name.startsWith("berth-"))).toBe(true);
  // Links lead nowhere but into the root of the step that follows them; set-user-id gives nothing.
  const next = await build("next", "prj_evil", [
    `${mount} ls /c/root/ | grep -c busybox; ls -d /c/up/berth-* 2>/dev/null; mount | grep ' /c ' | grep -o nosuid; stat -c '%a %u' /c/su`,
  ]);
  expect(next.error).toBeNull();
  expect(said(next)).toEqual(["0", "nosuid", "6755 0"]);
  const other = await build("apart", "prj_good", [`${mount} ls /c; echo empty`]);
  expect(said(other)).toEqual(["empty"]);
  // Asked for in the other's name, it is there: what keeps them apart is the project.
  expect(said(await build("same", "prj_evil", [`${mount} ls /c`]))).toContain("su");
});

test("a cache that is full is told to the step that writes and to the next one, and can be emptied", async () => {
  const build = (command: string) =>
    worker.build("full", ["FROM base", `RUN --mount=type=cache,id=full,target=/c ${command}`], {}, { noCache: true });
  // Its size is its disk's, whatever the host has.
  const full = await build(
    "fallocate -l 8G /c/a; dd if=/dev/zero of=/c/b bs=1M seek=9000 count=1 && fallocate -l 8G /c/b",
  );
  expect(full.error?.message).toContain("No space left on device");
  expect((await build("fallocate -l 8G /c/c")).error?.message).toContain("No space left on device");
  expect(said(await build("rm /c/* && fallocate -l 8G /c/c && echo room"))).toEqual(["room"]);
  expect(said(await build("rm /c/c; ls /c; echo empty"))).toEqual(["empty"]);
});

test("a mount that can't be is an error at its line", async () => {
  const failing = async (line: string) => (await worker.build("wrong", ["FROM base", line], { a: "a" })).error;
  expect(await failing("RUN --mount=type=tmpfs,target=/bin/busybox true")).toMatchObject({
    code: "invalid_dockerfile",
    facts: { line: 2 },
  });
  expect(await failing("RUN --mount=type=tmpfs,target=/proc/x true")).toMatchObject({ code: "invalid_dockerfile" });
  expect(await failing("RUN --mount=type=bind,source=/none,target=/x true")).toMatchObject({
    code: "invalid_context",
    facts: { line: 2 },
  });
  expect(await failing("RUN --network=host true")).toMatchObject({ code: "invalid_dockerfile", facts: { line: 2 } });
});

test("a step without a network has a loopback alone", async () => {
  const devices = (network: string) => [`RUN --network=${network} ls /sys/class/net`];
  expect(said(await worker.build("none", ["FROM base", ...devices("none")]))).toEqual(["lo"]);
  expect(said(await worker.build("default", ["FROM base", ...devices("default")])).length).toBe(2);
});
