import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtempSync, readFileSync, realpathSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { debianOf, packageOf, reachedSource } from "../support/debian.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry } from "../support/image.ts";

// What Dockerfiles of Debian do, in a base of this machine's own packages. One test alone installs over a network.

interface Line {
  seq: number;
  step: number;
  stream: string;
  text: string;
  at: string;
}

const packages =
  "apt passwd login libcap2-bin coreutils dash sed grep tar gzip findutils mawk diffutils libc-bin base-files base-passwd libstdc++6";
const npm = dirname(dirname(realpathSync(execFileSync("which", ["npm"], { encoding: "utf8" }).trim())));
const hello = {
  Package: "berth-hello",
  Version: "1",
  Architecture: "all",
  Depends: "libc6",
  Maintainer: "Test <test@example.com>",
  Description: "one file",
};
const source = await reachedSource();
if (source === null)
  console.warn("debian-build.test.ts installs nothing over the network: no source of apt's is reached");

let host: DrivenHost;
let directory: string;

beforeAll(async () => {
  directory = mkdtempSync(join(tmpdir(), "berth-debian-test-"));
  host = await DrivenHost.create(inject("postgresSocketDir"));
  host.api.services.limits = { ...host.api.services.limits, contextBytes: 2 ** 28 };
  await host.start();
  const { root, files } = debianOf(packages.split(" "));
  const made = await build("debian:1", ["FROM scratch", "ADD root.tar /", "COPY etc /etc", "COPY var /var"], {
    "root.tar": root,
    ...files,
  });
  expect(made.error).toBeNull();
});
afterAll(async () => {
  await host.destroy();
  rmSync(directory, { recursive: true, force: true });
});

async function build(tag: string, dockerfile: string[], files: Record<string, string | Buffer> = {}) {
  const all = Object.entries({ Dockerfile: `${dockerfile.join("\n")}\n`, ...files });
  const response = await host.api.app.request(`/v1/builds?tag=${tag}`, {
    method: "POST",
    headers: {
      authorization: `Bearer ${host.project.tokens.admin}`,
      "content-type": "application/x-tar",
      prefer: "wait=60",
    },
    body: await collect(writeTar(all.map(([path, content]) => entry(path, { content, mode: 0o755 })))),
  });
  const { id, error } = (await response.json()) as { id: string; error: unknown };
  expect(response.status).toBe(201);
  return { id, error, lines: (after = 0) => linesOf(id, after) };
}

/** A build's lines behind one, as events. */
async function linesOf(id: string, after: number): Promise<Line[]> {
  const headers = {
    authorization: `Bearer ${host.project.tokens.admin}`,
    accept: "text/event-stream",
    ...(after === 0 ? {} : { "last-event-id": String(after) }),
  };
  const text = await (await host.api.app.request(`/v1/builds/${id}/logs`, { headers })).text();
  return [...text.matchAll(/^data: (.*)$/gm)].map(([, data]) => JSON.parse(data ?? "") as Line);
}

test("apt-get install, useradd, chown and setcap, as a Dockerfile has them", async () => {
  const deb = packageOf(directory, hello, "#!/bin/sh\nset -e\necho configured as $(id -u) > /configured\n");
  const SHA256 = createHash("sha256").update(deb).digest("hex");
  const index = Object.entries({ ...hello, Filename: "./hello.deb", Size: String(deb.length), SHA256 });
  const built = await build(
    "installed:1",
    [
      "FROM debian:1",
      "COPY hello.deb Packages /repo/",
      "RUN echo 'deb [trusted=yes] file:/repo ./' > /etc/apt/sources.list.d/repo.list && rm -f /etc/apt/sources.list.d/debian.sources \\",
      "  && apt-get update && apt-get install -y --no-install-recommends berth-hello && rm -rf /var/lib/apt/lists/*",
      "RUN useradd --create-home --uid 1234 app && install -d -o app -g app /srv/app && chown -R app:app /repo",
      "RUN cp /usr/bin/cat /usr/bin/ping && setcap cap_net_bind_service+ep /usr/bin/ping",
      "RUN getcap /usr/bin/ping; cat /usr/share/hello; dpkg-query -W berth-hello; stat -c %U:%G /repo/Packages; cat /configured; echo said >&2",
      "USER app",
      "RUN id -un; pwd; touch ~/mine && stat -c '%u %n' ~/mine",
    ],
    {
      "hello.deb": deb,
      Packages: index.map(([field, value]) => `${field}: ${value}\n`).join(""),
    },
  );
  const lines = await built.lines();
  expect(built.error, lines.map(({ text }) => text).join("\n")).toBeNull();
  const said = (step: number, stream: string) =>
    lines.filter((line) => line.step === step && line.stream === stream).map(({ text }) => text);
  // Both streams by step, each line with its time, in order; and all of it again behind any line.
  expect(said(6, "stdout")).toEqual([
    "/usr/bin/ping cap_net_bind_service=ep",
    "hello",
    "berth-hello\t1",
    "app:app",
    "configured as 0",
  ]);
  expect(said(6, "stderr")).toEqual(["said"]);
  expect(said(8, "stdout")).toEqual(["app", "/", "1234 /home/app/mine"]);
  expect(lines.map(({ seq }) => seq)).toEqual(lines.map((_, index) => index + 1));
  const times = lines.map(({ at }) => Date.parse(at));
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(await built.lines(10)).toEqual(lines.slice(10));
});

test.skipIf(source === null)("apt-get install of a signed package over the network, by name", async () => {
  const deb = `deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] ${source?.uri ?? ""} ${source?.suite ?? ""} main`;
  const install = "apt-get update && apt-get install -y --no-install-recommends hello && rm -rf /var/lib/apt/lists/*";
  const base = ["FROM debian:1", `RUN rm -f /etc/apt/sources.list.d/* && echo '${deb}' > /etc/apt/sources.list`];
  const built = await build("hello:1", [...base, `RUN ${install}`, "RUN hello && dpkg-query --show hello"]);
  const said = (await built.lines()).map(({ text }) => text);
  expect(built.error, said.join("\n")).toBeNull();
  expect(said).toContain("Hello, world!");
  expect(said.find((line) => line.startsWith("hello\t"))).toMatch(/\t\d/);
  // It came over the network that this step has not.
  const cut = await build("hello:2", [...base, `RUN --network=none ${install}`]);
  expect(cut.error).toMatchObject({ code: "step_failed" });
});

test.skipIf(!npm.endsWith("/npm"))("npm install, with a script that runs and a program that is linked", async () => {
  const dependency = {
    "package.json": JSON.stringify({
      name: "dep",
      version: "1.0.0",
      bin: "cli.js",
      scripts: { install: "node cli.js > made" },
    }),
    "cli.js": "#!/usr/bin/env node\nconsole.log(`ran as ${process.getuid()}`);\n",
  };
  const tools = execFileSync("tar", ["--create", "--directory", dirname(npm), "npm"], { maxBuffer: 2 ** 28 });
  const built = await build(
    "npm:1",
    [
      "FROM debian:1",
      "RUN useradd --create-home app",
      "COPY dep /dep",
      "ADD npm.tar /usr/lib/",
      "WORKDIR /home/app",
      "USER app",
      "RUN --mount=type=bind,source=node,target=/usr/bin/node \\",
      "  /usr/bin/node /usr/lib/npm/bin/npm-cli.js install --offline --no-audit --no-fund --install-links /dep && \\",
      "  cat node_modules/dep/made && node_modules/.bin/dep && stat -c %U node_modules package-lock.json",
    ],
    {
      ...Object.fromEntries(Object.entries(dependency).map(([name, content]) => [`dep/${name}`, content])),
      "npm.tar": tools,
      node: readFileSync(process.execPath),
    },
  );
  const lines = await built.lines();
  expect(built.error, lines.map(({ text }) => text).join("\n")).toBeNull();
  expect(
    lines
      .filter(({ stream }) => stream === "stdout")
      .map(({ text }) => text)
      .slice(-4),
  ).toEqual(["ran as 1000", "ran as 1000", "app", "app"]);
});
