import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { type BuildWorker, busybox, startBuildWorker } from "../support/builds.ts";
import { entry } from "../support/image.ts";

let worker: BuildWorker;

beforeAll(async () => {
  worker = await startBuildWorker();
  const base = await worker.build(
    "base",
    ["FROM scratch", "COPY busybox /bin/busybox", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]', "COPY etc /etc"],
    {
      busybox: busybox(),
      "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
      "etc/group": "app:x:1000:\n",
    },
  );
  expect(base.error).toBeNull();
  expect(base.files["/bin/sh"]).toBe("777 0:0 -> /bin/busybox");
  // What the runtime mounts over is not in the image.
  expect(Object.keys(base.files).filter((path) => /^\/(?:dev|proc|sys|etc\/hosts|etc\/resolv)/.test(path))).toEqual([]);
});
afterAll(() => worker.stop());
afterEach(() => {
  expect(worker.leftovers()).toEqual([]);
});

test("two stages: output by stream, the result's config, history and files", async () => {
  const answer = await worker.build(
    "web",
    [
      "FROM base AS build",
      "ARG GREETING=hello",
      "WORKDIR /src",
      "COPY . .",
      "RUN echo $GREETING > out; echo said; echo oops >&2; mkfifo p; rm -r /etc/group",
      "FROM base",
      "COPY --from=build --chown=app:app /src/out /srv/index.html",
      "USER app",
      "ENV PORT=8080",
      "EXPOSE 8080",
      'ENTRYPOINT ["/bin/httpd", "-f"]',
      'CMD ["-p", "8080"]',
    ],
    { "a.txt": "a" },
    { args: { GREETING: "hi" }, labels: { by: "test" } },
  );
  expect(answer.error).toBeNull();
  expect(answer.log).toEqual(
    expect.arrayContaining([
      "stdout: said",
      "stderr: oops",
      "#4 [build 4/5] COPY . .",
      expect.stringMatching(/^#5 DONE/),
    ]),
  );
  expect(answer.steps.map(({ status }) => status)).toEqual(answer.steps.map(() => "succeeded"));
  expect(answer.files["/srv/index.html"]).toBe("644 1000:1000");
  expect(answer.files["/srv"]).toBe("755 1000:1000");
  expect(answer.files["/src"]).toBeUndefined();
  expect(answer.files["/etc/group"]).toBe("644 0:0");
  const { config, layers } = answer.image ?? { config: undefined, layers: [] };
  expect(config?.config).toMatchObject({
    User: "app",
    Entrypoint: ["/bin/httpd", "-f"],
    Cmd: ["-p", "8080"],
    ExposedPorts: { "8080/tcp": {} },
    Labels: { by: "test" },
  });
  expect(config?.config?.Env).toContain("PORT=8080");
  expect(config?.history?.filter(({ empty_layer }) => empty_layer !== true)).toHaveLength(layers.length);
  expect(config?.rootfs.diff_ids).toEqual(layers.map(({ diffId }) => diffId));
});

test("a RUN that removes and replaces is a layer of whiteouts; its own view has everything below", async () => {
  const answer = await worker.build("whiteouts", [
    "FROM base",
    "RUN mkdir -p /d/sub && echo 1 > /d/sub/f && echo 2 > /d/g && ln /d/g /d/h",
    "RUN rm /d/sub/f && rm -r /d/g && rmdir /d/sub && mkdir /d/sub && chown app /d/h && chmod 4755 /d/h",
    "RUN test ! -e /d/sub/f && test ! -e /d/g",
    "RUN true",
  ]);
  expect(answer.error).toBeNull();
  expect(Object.entries(answer.files).filter(([path]) => path.startsWith("/d"))).toEqual([
    ["/d", "755 0:0"],
    ["/d/h", "4755 1000:0"],
    ["/d/sub", "755 0:0"],
  ]);
  // `test` and `true` change nothing: no layer.
  expect(answer.image?.config.history?.slice(-2).map(({ empty_layer }) => empty_layer)).toEqual([true, true]);
});

test("an unchanged rebuild runs no step; a change runs from there on; other images share nothing they must not", async () => {
  const dockerfile = [
    "FROM base",
    "WORKDIR /w",
    "COPY a a",
    "RUN cat a > b",
    "FROM base",
    "COPY --from=0 /w/b /b",
    "LABEL x=1",
  ];
  const first = await worker.build("cache", dockerfile, { a: "1", other: "x" });
  const again = await worker.build("cache", dockerfile, { a: "1", other: "y" });
  const work = (answer: typeof first) =>
    answer.steps.filter(({ instruction }) => /^(?:RUN|COPY|WORKDIR)/.test(instruction)).map(({ cached }) => cached);
  expect(first.error).toBeNull();
  expect(work(first)).toEqual([false, false, false, false]);
  expect(work(again)).toEqual([true, true, true, true]);
  expect(again.image?.digest).toBe(first.image?.digest);
  const later = await worker.build("cache", dockerfile, [
    entry("a", { content: "1", mtime: { seconds: 1_800_000_000, nanoseconds: 0 } }),
  ]);
  expect(work(later)).toEqual([true, true, true, true]);
  expect(work(await worker.build("cache", dockerfile, { a: "2" }))).toEqual([true, false, false, false]);
  // Another way to the same file: what COPY --from takes is the same, so its layer is.
  const other = await worker.build("cache", dockerfile.with(3, "RUN cat a > b; touch /elsewhere"), { a: "1" });
  expect(work(other)).toEqual([true, true, false, true]);
  expect(work(await worker.build("cache", dockerfile, { a: "1" }, { noCache: true }))).toEqual([
    false,
    false,
    false,
    false,
  ]);
});

test("with SOURCE_DATE_EPOCH two hosts make one image, whenever they do and however old their files are", async () => {
  const dockerfile = [
    "FROM scratch",
    "COPY busybox /bin/busybox",
    'RUN ["/bin/busybox", "--install", "-s", "/bin"]',
    "COPY a.txt /",
    "RUN echo b > /b.txt; mkdir /d",
    "WORKDIR /w",
    "LABEL x=1",
  ];
  const args = { SOURCE_DATE_EPOCH: "1700000000" };
  const build = (on: BuildWorker, seconds: number) => {
    const mtime = { seconds, nanoseconds: 5 };
    const files = [
      entry("busybox", { content: busybox(), mode: 0o755, mtime }),
      entry("a.txt", { content: "a", mtime }),
    ];
    return on.build("dated", dockerfile, files, { args });
  };
  const other = await startBuildWorker();
  try {
    const [one, two] = [await build(worker, 1_750_000_000), await build(other, 1_760_000_000)];
    expect(one.error).toBeNull();
    const times = [one.image?.config.created, ...(one.image?.config.history ?? []).map(({ created }) => created)];
    expect(new Set(times)).toEqual(new Set(["2023-11-14T22:13:20.000Z"]));
    expect(two.image?.digest).toBe(one.image?.digest);
  } finally {
    await other.stop();
  }
});

test("a failed RUN says what, where, with which exit code, and how it ended", async () => {
  const answer = await worker.build("failing", [
    "FROM base",
    "",
    "RUN echo first; \\",
    "  echo why >&2; exit 7",
    "RUN never",
  ]);
  expect(answer.error).toMatchObject({
    code: "step_failed",
    facts: { exitCode: 7, line: 3, instruction: "RUN echo first; echo why >&2; exit 7" },
  });
  expect(answer.error?.message).toMatch(/ended with exit code 7\.\n(?:first\nwhy|why\nfirst)$/);
  expect(answer.steps.map(({ status }) => status)).toEqual(["succeeded", "failed", "pending"]);
  expect((await worker.build("missing", ["FROM base", 'RUN ["/nope"]'])).error).toMatchObject({
    code: "command_not_found",
    facts: { line: 2 },
  });
  expect((await worker.build("user", ["FROM base", "USER nobody", "RUN true"])).error).toMatchObject({
    code: "invalid_user",
    facts: { line: 3 },
  });
  expect((await worker.build("base-missing", ["FROM base", "FROM nowhere"])).error).toMatchObject({
    code: "image_not_found",
    facts: { line: 2 },
  });
});

test("when one stage fails, those beside it are stopped", async () => {
  const started = performance.now();
  const answer = await worker.build("side", [
    "FROM base AS a",
    "RUN sleep 60; echo a > /a",
    "FROM base AS b",
    "RUN exit 3",
    "FROM base",
    "COPY --from=a /a /",
    "COPY --from=b /a /",
  ]);
  expect(answer.error).toMatchObject({ code: "step_failed", facts: { exitCode: 3, line: 4 } });
  expect(answer.steps[1]?.status).toBe("cancelled");
  expect(performance.now() - started).toBeLessThan(20_000);
});

test("a Dockerfile's own .dockerignore stands in for the context's", async () => {
  const dockerfile = ["FROM base", "COPY . /c"];
  const files = { a: "a", b: "b", ".dockerignore": "a\n" };
  const copied = async (tag: string, more: Record<string, string>) => {
    const answer = await worker.build(tag, dockerfile, { ...files, ...more });
    expect(answer.error).toBeNull();
    return ["/c/a", "/c/b"].filter((path) => answer.files[path] !== undefined);
  };
  expect(await copied("ignore", {})).toEqual(["/c/b"]);
  expect(await copied("own-ignore", { "Dockerfile.dockerignore": "b\n" })).toEqual(["/c/a"]);
});

test("a build that is cancelled ends within a second and leaves nothing", async () => {
  const answer = await worker.build(
    "cancelled",
    ["FROM base", "RUN echo now; trap '' TERM; sleep 60"],
    {},
    { cancelAt: "now" },
  );
  expect(answer.error?.code).toBe("cancelled");
  expect(answer.steps[1]?.status).toBe("cancelled");
  expect(answer.milliseconds).toBeLessThan(3000);
});

test("heredocs run, in the shell and by their own interpreter; RUN sees its environment, user and directory", async () => {
  const answer = await worker.build("heredoc", [
    "FROM base",
    "ARG who=world",
    "RUN <<EOF",
    'echo "hello $who" > /said',
    "EOF",
    "RUN <<EOF",
    "#!/bin/sh",
    "echo $0 >> /said",
    "EOF",
    "WORKDIR /home/app",
    "USER app",
    "RUN id -u; pwd; echo $HOME; cat /said",
    "COPY <<EOF /conf",
    "who=$who",
    "EOF",
    "RUN cat /conf",
  ]);
  expect(answer.error).toBeNull();
  const out = answer.log.filter((line) => line.startsWith("stdout: ")).map((line) => line.slice(8));
  expect(out).toEqual(["1000", "/home/app", "/home/app", "hello world", "/.heredoc/EOF", "who=world"]);
  expect(answer.files["/.heredoc"]).toBeUndefined();
});

test("a flood of output is cut, and the build goes on", async () => {
  const answer = await worker.build("flood", [
    "FROM base",
    "RUN yes 0123456789012345678901234567890123456789 | head -n 300000; echo end >&2",
  ]);
  expect(answer.error).toBeNull();
  expect(answer.log.some((line) => line.includes("the rest of the output is left out"))).toBe(true);
  expect(answer.log.length).toBeLessThan(150_000);
});
