import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { LayerEntry } from "../../src/image/layer-entry.ts";
import { readTar } from "../../src/image/tar-read.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import type { Problem } from "../support/api.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { chunked, collect, entry } from "../support/image.ts";

let host: DrivenHost;

beforeAll(async () => {
  host = await DrivenHost.create(inject("postgresSocketDir"));
  await host.start();
  await host.buildBusybox("box:1");
  await run("box");
});
afterAll(() => host.destroy());

async function run(name: string, more: object = {}): Promise<void> {
  const body = { image: "box:1", name, command: ["sleep", "1000"], stopTimeoutSeconds: 0, ...more };
  const made = await host.ask<{ status: string }>("POST", "/v1/containers", body, { prefer: "wait=60" });
  expect(made.body).toMatchObject({ status: "running" });
}

const sh = async (script: string, name = "box") => {
  const { body } = await host.ask<{ stdout: string; stderr: string }>("POST", `/v1/containers/${name}/exec`, {
    command: ["sh", "-c", script],
  });
  return body.stdout + body.stderr;
};

const request = (
  method: string,
  path: string,
  more: { name?: string; body?: string | Uint8Array<ArrayBuffer> | ReadableStream; token?: string } = {},
) =>
  host.api.app.request(`/v1/containers/${more.name ?? "box"}/files?path=${encodeURIComponent(path)}`, {
    method,
    headers: {
      authorization: `Bearer ${more.token ?? host.project.tokens.deployer}`,
      ...(more.body === undefined ? {} : { "content-type": "application/x-tar" }),
    },
    ...(more.body === undefined ? {} : { body: more.body, duplex: "half" }),
  });

const tarOf = async (...entries: LayerEntry[]) => new Uint8Array(await collect(writeTar(entries)));
const problem = async (response: Response) => [response.status, ((await response.json()) as Problem).code];

async function contents(response: Response): Promise<Record<string, string>> {
  const files: Record<string, string> = {};
  const bytes = Buffer.from(await response.arrayBuffer());
  for await (const each of readTar(chunked(bytes, 10_000))) {
    const text =
      each.type === "file" ? String(await collect(chunked(await collect(toIterable(each)), 100))) : each.target;
    files[each.path] = `${each.type} ${String(each.uid)} ${each.mode.toString(8)} ${text}`;
  }
  return files;
}
async function* toIterable({ content }: LayerEntry): AsyncGenerator<Uint8Array> {
  yield* content;
}

describe("files of a container", () => {
  test("go in as a tar, are the container's own there, and come out again", async () => {
    const put = await request("PUT", "/", {
      body: await tarOf(
        entry("srv/", { type: "directory", mode: 0o755, uid: 33, gid: 33 }),
        entry("srv/a", { content: "from outside", mode: 0o640, uid: 33, gid: 33 }),
        entry("srv/b", { type: "symlink", target: "a" }),
      ),
    });
    expect([put.status, await put.json()]).toEqual([200, { entries: 3, bytes: 12 }]);
    expect(await sh("stat -c '%u:%g %a' /srv/a; cat /srv/b")).toBe("33:33 640\nfrom outside");
    await sh("echo inside > /srv/c; chown 7 /srv/c; ln -s /etc/shadow /srv/d; mkfifo /srv/e");

    const got = await request("GET", "/srv");
    expect(got.headers.get("content-type")).toBe("application/x-tar");
    expect(JSON.parse(got.headers.get("berth-file") ?? "")).toMatchObject({ name: "srv", type: "directory", uid: 33 });
    expect(await contents(got)).toEqual({
      "srv/": "directory 33 755 ",
      "srv/a": "file 33 640 from outside",
      "srv/b": "symlink 0 777 a",
      "srv/c": "file 7 644 inside\n",
      "srv/d": "symlink 0 777 /etc/shadow",
      "srv/e": "fifo 0 644 ",
    });
  });

  test("HEAD describes what a path leads to, also a name of other letters", async () => {
    await sh("echo -n 12345 > /srv/größe");
    const head = await request("HEAD", "/srv/größe");
    expect([head.status, await head.text()]).toEqual([200, ""]);
    expect(JSON.parse(head.headers.get("berth-file") ?? "")).toMatchObject({ name: "größe", type: "file", size: 5 });
    expect((await request("HEAD", "/srv/none")).status).toBe(404);
  });

  test("a compressed tar is as good; files over the archive's limit and no tar are not", async () => {
    const tar = await tarOf(entry("packed", { content: "x".repeat(10_000) }));
    expect((await request("PUT", "/srv", { body: new Uint8Array(gzipSync(tar)) })).status).toBe(200);
    expect(await sh("wc -c < /srv/packed")).toBe("10000\n");
    expect(await problem(await request("PUT", "/srv", { body: "this is no tar ".repeat(100) }))).toEqual([
      400,
      "invalid_archive",
    ]);
    const { contextBytes } = host.api.services.limits;
    const large = new Uint8Array(contextBytes + 1024);
    large.set(await tarOf(entry("large", { content: "" })));
    const refused = await request("PUT", "/srv", { body: large });
    expect(await problem(refused)).toEqual([413, "body_too_large"]);
  });

  test("nothing of the host's is reached: by links, by what is mounted over, or by a path of its own", async () => {
    await sh("ln -s /proc/1/root/etc/hostname /srv/magic; ln -s ../../../../../../../../proc/version /srv/dots");
    for (const path of ["/srv/magic", "/srv/dots", "/proc/version", "/proc/self/environ", "/dev/null", "/sys/kernel"]) {
      expect(await problem(await request("GET", path)), path).toEqual([404, "file_not_found"]);
    }
    expect(await contents(await request("GET", "/proc"))).toEqual({
      "proc/": expect.stringMatching(/^directory/) as string,
    });
    const tar = await tarOf(entry("core_pattern", { content: "|/evil" }));
    expect((await request("PUT", "/proc/sys/kernel", { body: tar })).status).toBe(404);
    expect(await problem(await request("GET", "/../etc"))).toEqual([400, "invalid_request"]);
  });

  test("what does not fit on its disk is said, and the container and its host go on", async () => {
    await run("small", { resources: { disk: 16 * 2 ** 20 } });
    const bomb = new Uint8Array(gzipSync(await tarOf(entry("zeros", { content: new Uint8Array(64 * 2 ** 20) }))));
    expect(bomb.length).toBeLessThan(2 ** 20);
    expect(await problem(await request("PUT", "/", { name: "small", body: bomb }))).toEqual([507, "disk_full"]);
    expect(await sh("ls -A / | grep -c berth; echo on", "small")).toBe("0\non\n");
    expect(
      (await request("PUT", "/", { name: "small", body: await tarOf(entry("fits", { content: "x" })) })).status,
    ).toBe(200);
  });

  test("are for those who may run commands there, of a container that runs and can be written to", async () => {
    const other = await host.api.project("other");
    expect((await request("GET", "/etc", { token: host.project.tokens.viewer })).status).toBe(403);
    expect((await request("PUT", "/etc", { token: host.project.tokens.viewer, body: "" })).status).toBe(403);
    expect(await problem(await request("GET", "/etc", { token: other.tokens.admin }))).toEqual([404, "not_found"]);
    await run("fixed", { readOnlyRootfs: true });
    const tar = await tarOf(entry("x", { content: "x" }));
    expect(await problem(await request("PUT", "/", { name: "fixed", body: tar }))).toEqual([409, "invalid_state"]);
    expect((await request("GET", "/bin/busybox", { name: "fixed" })).status).toBe(200);
    await host.ask("POST", "/v1/containers/fixed/stop", undefined, { prefer: "wait=30" });
    expect(await problem(await request("GET", "/etc", { name: "fixed" }))).toEqual([409, "invalid_state"]);
  });

  test("a reader that does not read, and a writer that does not write, hold up no stop and no next start", async () => {
    await run("held");
    await sh("dd if=/dev/zero of=/large bs=1M count=64 2>/dev/null", "held");
    const slow = await request("GET", "/large", { name: "held" });
    const reader = slow.body?.getReader();
    expect((await reader?.read())?.done).toBe(false);
    const start = (await tarOf(entry("half", { content: "x".repeat(100_000) }))).subarray(0, 50_000);
    let sent = (): void => undefined;
    const under = new Promise<void>((resolve) => {
      sent = resolve;
    });
    const stalled = request("PUT", "/", {
      name: "held",
      body: new ReadableStream<Uint8Array>({
        pull(controller) {
          controller.enqueue(start);
          sent();
          return new Promise(() => undefined);
        },
      }),
    });
    await under;
    await expect.poll(() => sh("ls -A / | grep -c berth", "held")).toBe("1\n");
    const stopped = await host.ask<{ status: string }>("POST", "/v1/containers/held/restart", undefined, {
      prefer: "wait=30",
    });
    expect(stopped.body).toMatchObject({ status: "running" });
    expect(await problem(await stalled)).toEqual([409, "invalid_state"]);
    const rest = async () => {
      for (;;) if ((await reader?.read())?.done !== false) return;
    };
    await expect(rest()).rejects.toThrow();
    expect(await sh("ls -A / | grep -c berth; ls -l /large | wc -l", "held")).toBe("0\n1\n");
  });
});
