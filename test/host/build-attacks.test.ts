import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { type BuildWorker, busybox, startBuildWorker } from "../support/builds.ts";
import { collect, entry } from "../support/image.ts";

// Builds by strangers: what they bring must stay inside. The canary is a file of the host at a path that they aim at.
// `carelessly` shows that the aim is good: whoever follows the same paths without staying in the image gets there.

const canaryName = `berth-build-canary-${randomBytes(4).toString("hex")}`;
const canary = `/tmp/${canaryName}`;
let worker: BuildWorker;

beforeAll(async () => {
  writeFileSync(canary, "host\n");
  worker = await startBuildWorker();
  const dockerfile = ["FROM scratch", "COPY busybox /bin/busybox", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]'];
  expect((await worker.build("base", dockerfile, { busybox: busybox() })).error).toBeNull();
});
afterAll(async () => {
  await worker.stop();
  rmSync(canary, { force: true });
});
afterEach(() => {
  expect(readFileSync(canary, "utf8")).toBe("host\n");
  expect(existsSync(`${canary}-made`)).toBe(false);
  expect(worker.leftovers()).toEqual([]);
});

test("COPY into an image whose directories are links to everywhere stays in the image", async () => {
  const answer = await worker.build(
    "into",
    [
      "FROM base",
      `RUN mkdir /tmp && ln -s / /up && ln -s ../../../../../tmp /rel && ln -s ${canary} /aim`,
      `COPY a /up${canary}-made`,
      `COPY a /rel/${canaryName}`,
      "COPY a /aim",
      "ADD x.tar /rel/",
      `RUN cat ${canary} ${canary}-made /tmp/inner`,
    ],
    [
      entry("a", { content: "mine\n" }),
      entry("x.tar", { content: Buffer.concat([tarOf("inner", "inner\n"), Buffer.alloc(1024)]) }),
    ],
    { carelessly: { read: ["/aim", `/up${canary}`, `/rel/${canaryName}`] } },
  );
  expect(answer.error).toBeNull();
  expect(answer.strayed).toEqual(["host\n", "host\n", "host\n"]);
  expect(answer.log.filter((line) => line.startsWith("stdout"))).toEqual([
    "stdout: mine",
    "stdout: mine",
    "stdout: inner",
  ]);
});

test("COPY out of a stage whose files are links to everywhere reads the stage only", async () => {
  const stage = [
    "FROM base AS evil",
    `RUN mkdir -p /tmp /d && echo mine > /tmp/f && ln -s / /root-link && ln -s /proc/self/root /proc-link && ln -s ${canary} /d/link`,
  ];
  const links = ["/d/link", `/proc-link${canary}`, `/root-link${canary}`];
  const evil = await worker.build("evil", stage, {}, { carelessly: { read: links } });
  expect(evil.strayed).toEqual(links.map(() => "host\n"));
  const answer = await worker.build("out", [
    ...stage,
    "FROM base",
    "COPY --from=evil /root-link/tmp/f /f",
    "COPY --from=evil /../../../tmp/f /g",
    "COPY --from=evil /d /d",
  ]);
  expect(answer.error).toBeNull();
  // A link in a directory is copied as a link, not read through.
  expect(answer.files["/d/link"]).toBe(`777 0:0 -> ${canary}`);
  for (const path of links) {
    const refused = await worker.build("out", [...stage, "FROM base", `COPY --from=evil ${path} /x`]);
    expect(refused.error).toMatchObject({ code: "invalid_context", facts: { line: 4 } });
  }
});

test("what a step leaves running is gone before its files are read: a link that it swaps in all the time is never followed", async () => {
  const swap = "while :; do mv /d /e; ln -s /tmp /d; cat /d/*; rm /d; mv /e /d; done";
  const answer = await worker.build("swap", [
    "FROM base AS evil",
    `RUN mkdir /tmp /d && echo mine > /d/${canaryName} && (${swap}) >/dev/null 2>&1 & sleep 0.5`,
    "FROM base",
    "COPY --from=evil / /got/",
    // In one of the two names, whenever it was stopped.
    `RUN cat /got/d/${canaryName} /got/e/${canaryName} 2>/dev/null; ls /got/tmp; true`,
  ]);
  expect(answer.error).toBeNull();
  expect(answer.log.filter((line) => line.startsWith("stdout"))).toEqual(["stdout: mine"]);
  // Followed as the host, such a link leads to the canary.
  const aim = await worker.build(
    "aim",
    ["FROM base", "RUN ln -s /tmp /d"],
    {},
    {
      carelessly: { read: [`/d/${canaryName}`] },
    },
  );
  expect(aim.strayed).toEqual(["host\n"]);
});

test("links of a context lead nowhere but into the context; unpacked and followed they lead to the host", async () => {
  const link = (path: string, target: string) => entry(path, { type: "symlink", target });
  const up = "../".repeat(20);
  const links = [link("abs", canary), link("rel", `${up}tmp/${canaryName}`), link("all", "/"), link("d/in", "../a")];
  const copies = ["abs", "rel", `all${canary}`, `${up}tmp/${canaryName}`, canary];
  for (const source of copies) {
    const refused = await worker.build("context", ["FROM base", `COPY ${source} /x`], links);
    expect(refused.error, source).toMatchObject({ code: "invalid_context", facts: { line: 2 } });
  }
  // The same names, where the context has them.
  const own = [...links, entry(`tmp/${canaryName}`, { content: "mine\n" }), entry("a", { content: "a\n" })];
  for (const source of [...copies, "d/in"]) {
    const answer = await worker.build("context", ["FROM base", `COPY ${source} /x`, "RUN cat /x"], own, {
      noCache: true,
    });
    expect(answer.error, source).toBeNull();
    expect(answer.log, source).toContain(source === "d/in" ? "stdout: a" : "stdout: mine");
  }
  const careless = mkdtempSync(join(tmpdir(), "berth-careless-"));
  try {
    execFileSync("tar", ["x", "-C", careless], { input: await collect(writeTar(links)) });
    for (const source of copies.slice(0, 4)) expect(readFileSync(join(careless, source), "utf8")).toBe("host\n");
  } finally {
    rmSync(careless, { recursive: true });
  }
});

test("caches and bind mounts of a stage begin with what is in the stage, wherever source= leads, several at once", async () => {
  const stage = [
    "FROM base AS evil",
    `RUN mkdir /tmp && echo mine > ${canary} && ln -s / /up && ln -s ../../../../../../tmp /rel`,
  ];
  const sources = ["/up/tmp", "/rel", "/../../../tmp"];
  const seen = sources.slice(0, 2).map((source) => `${source}/${canaryName}`);
  const evil = await worker.build("evil", stage, {}, { carelessly: { read: seen } });
  expect(evil.strayed).toEqual(["host\n", "host\n"]);
  const reading = (name: string) => [
    `FROM base AS ${name}`,
    `RUN ${sources.map((source, i) => `--mount=type=cache,target=/c${String(i)},id=trick,from=evil,source=${source}`).join(" ")} \\`,
    `  ${sources.map((source, i) => `--mount=type=bind,target=/b${String(i)},from=evil,source=${source}`).join(" ")} \\`,
    `  cat /c?/${canaryName} /b?/${canaryName} | sort | uniq -c | awk '{print $1, $2}'; touch /done`,
  ];
  const answer = await worker.build("tricks", [
    ...stage,
    ...reading("one"),
    ...reading("two"),
    "FROM base",
    "COPY --from=one /done /1",
    "COPY --from=two /done /2",
  ]);
  expect(answer.error).toBeNull();
  expect(answer.log.filter((line) => line.startsWith("stdout"))).toEqual(["stdout: 6 mine", "stdout: 6 mine"]);
  // A mount's place is found in the image as well.
  const place = await worker.build("place", [
    ...stage,
    `RUN --mount=type=cache,id=place,target=/up${canary}-made touch /rel/${canaryName}-made/f && ls ${canary}-made`,
  ]);
  expect(place.error).toBeNull();
  expect(place.log).toContain("stdout: f");
});

test("WORKDIR can't reach the worker's descriptors, by name or by a link; no descriptor leaks into a step", async () => {
  for (const lines of [
    ["WORKDIR /proc/self/fd/7"],
    ["RUN ln -s /proc/self/fd/7 /x", "WORKDIR /x"],
    ["RUN ln -s /proc /x", "WORKDIR /x/self/cwd"],
  ]) {
    const answer = await worker.build("workdir", ["FROM base", ...lines, "RUN ls -l ../../../tmp"]);
    expect(answer.error).toMatchObject({ code: "invalid_dockerfile", facts: { line: lines.length + 1 } });
  }
  // Where such a link is followed as the worker, it leads to what the worker has.
  const careless = await worker.build(
    "aim",
    ["FROM base", `RUN ln -s /proc/self/root${canary} /x`],
    {},
    {
      carelessly: { read: ["/x"] },
    },
  );
  expect(careless.strayed).toEqual(["host\n"]);
  const answer = await worker.build("descriptors", ["FROM base", "RUN cd /proc/self/fd && echo * && readlink *"]);
  const out = answer.log.filter((line) => line.startsWith("stdout")).map((line) => line.slice(8));
  // Three of stdio, and the one that the listing itself has open.
  expect(out[0]).toBe("0 1 2 3");
  expect(
    out.slice(1).filter((target) => target.startsWith("/") && !/^\/dev\/null$|^\/proc\/\d+\/fd$/.test(target)),
  ).toEqual([]);
});

test("programs of the image never run outside the sandbox, whatever their names", async () => {
  const script = `#!/bin/sh\necho owned > ${canary}-made\n`;
  const names = ["tar", "gzip", "gunzip", "xz", "sh", "unpigz", "id"];
  const tools = Object.fromEntries(names.map((name) => [`bin/${name}`, Buffer.from(script)]));
  const answer = await worker.build(
    "tools",
    ["FROM scratch", "COPY bin /bin", "COPY bin /usr/bin", "ADD x.tar /y/", "WORKDIR /z"],
    [
      ...Object.entries(tools).map(([path, content]) => entry(path, { content, mode: 0o755 })),
      entry("x.tar", { content: Buffer.concat([tarOf("f", "f"), Buffer.alloc(1024)]) }),
    ],
  );
  expect(answer.error).toBeNull();
  expect(answer.files["/y/f"]).toBe("644 0:0");
  expect(existsSync(`${canary}-made`)).toBe(false);
  // Run as the host's, any of them leaves its mark.
  const trap = await worker.build("trap", ["FROM scratch", "COPY bin /bin"], tools, {
    carelessly: { run: ["/bin/tar"] },
  });
  expect(trap.error).toBeNull();
  expect(readFileSync(`${canary}-made`, "utf8")).toBe("owned\n");
  rmSync(`${canary}-made`);
});

test("a foreign frontend is noted and never run: neither one of a registry nor one that is an image here", async () => {
  const frontend = ["FROM base", "RUN echo 'echo the frontend ran' > /run && chmod 755 /run", 'ENTRYPOINT ["/run"]'];
  expect((await worker.build("frontend", frontend)).error).toBeNull();
  for (const name of ["evil.example/frontend:latest", "frontend"]) {
    const answer = await worker.build("syntax", [`# syntax=${name}`, "FROM base", "RUN true"]);
    expect(answer.error).toBeNull();
    expect(answer.steps).toHaveLength(2);
    expect(answer.log.join()).not.toContain("the frontend ran");
  }
  // Run, it says so.
  expect((await worker.build("run", ["FROM frontend", "RUN /run"])).log).toContain("stdout: the frontend ran");
});

test("an image is what its builder may see: setuid and owners stay, ids beyond the range become nobody's", async () => {
  const answer = await worker.build(
    "ids",
    ["FROM base", "COPY --chown=65535:65535 a /a", "RUN chown 1000:1000 /a; chmod 4755 /a"],
    { a: "a" },
  );
  expect(answer.files["/a"]).toBe("4755 1000:1000");
});

/** A tar of one file, by hand: what a stranger would send need not be what our writer writes. */
function tarOf(name: string, content: string): Buffer {
  const header = Buffer.alloc(512);
  header.write(name);
  header.write("0000644\0", 100);
  header.write("0000000\0", 108);
  header.write("0000000\0", 116);
  header.write(`${content.length.toString(8).padStart(11, "0")}\0`, 124);
  header.write("00000000000\0", 136);
  header.write("        0", 148);
  header.write("ustar\x0000", 257);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
  return Buffer.concat([header, Buffer.from(content.padEnd(512, "\0"))]);
}
