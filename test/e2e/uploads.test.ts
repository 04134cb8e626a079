import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, expect, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { Instance } from "../support/berth.ts";
import { entry } from "../support/image.ts";

// Uploads are stored as they come, and layers made of what comes: what they take of memory does not depend on their size.

const uploads = 50;
const mebibytes = 16;
/** What one upload may take of the API's memory while it is stored: buffers of sockets, streams and files. */
const mebibytesEach = 4;
/** Of a build's context, and of what its step writes. */
const large = 192;
let berth: Instance;

beforeAll(async () => {
  berth = Instance.create();
  await berth.start().until(/^Ready/m);
});
afterAll(() => berth.destroy());

async function ask<T>(path: string, body?: unknown): Promise<T> {
  const response = await fetch(`${berth.url}${path}`, {
    method: body === undefined ? "GET" : "POST",
    headers: { authorization: `Bearer ${berth.token}`, "content-type": "application/json" },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  });
  expect(response.status).toBeLessThan(300);
  return (await response.json()) as T;
}

/** Sends a build's context, as fast as it is taken; the answer. */
async function upload(
  project: string,
  content: AsyncIterable<Uint8Array>,
  wait = 0,
): Promise<{ status: number; text: string }> {
  const { host, port } = berth.config.listen;
  const outgoing = request({
    host,
    port,
    method: "POST",
    path: "/v1/builds?tag=zeros:1",
    headers: {
      authorization: `Bearer ${berth.token}`,
      "berth-project": project,
      "content-type": "application/x-tar",
      prefer: `wait=${String(wait)}`,
    },
  });
  const answered = once(outgoing, "response") as Promise<[IncomingMessage]>;
  for await (const chunk of content) {
    if (!outgoing.write(chunk)) await once(outgoing, "drain");
  }
  outgoing.end();
  const [response] = await answered;
  return { status: response.statusCode ?? 0, text: await text(response) };
}

async function* zeros(size: number): AsyncGenerator<Uint8Array> {
  const chunk = Buffer.alloc(2 ** 18);
  for (let sent = 0; sent < size * 2 ** 20; sent += chunk.length) yield await Promise.resolve(chunk);
}

/** What a role's process takes of memory, in MiB; and a function that counts its peak anew (proc(5), clear_refs). */
function memoryOf(role: "api" | "worker") {
  const pid = Number(/^\d+/.exec(readFileSync(join(berth.config.runDir, `${role}.pid`), "utf8"))?.[0]);
  const read = (field: "VmRSS" | "VmHWM") =>
    Number(new RegExp(`^${field}:\\s+(\\d+)`, "m").exec(readFileSync(`/proc/${String(pid)}/status`, "utf8"))?.[1]) /
    1024;
  return { read, reset: () => writeFileSync(`/proc/${String(pid)}/clear_refs`, "5") };
}

test(`${String(uploads)} uploads of ${String(mebibytes)} MiB at once take no more of the API's memory than their buffers`, async () => {
  const projects = await ask<{ items: { id: string }[] }>("/v1/projects");
  const other = await ask<{ id: string }>("/v1/projects", { name: "second" });
  const of = [projects.items[0]?.id ?? "", other.id];
  const memory = memoryOf("api");
  // Code that is used for the first time is compiled and kept.
  await upload(of[0] ?? "", zeros(mebibytes));
  const before = memory.read("VmRSS");
  memory.reset();
  const answers = await Promise.all(
    Array.from({ length: uploads }, (_, i) => upload(of[i % 2] ?? "", zeros(mebibytes))),
  );
  expect(answers.map(({ status }) => status).filter((status) => status !== 201 && status !== 202)).toEqual([]);
  const grown = memory.read("VmHWM") - before;
  console.log(`the API had ${before.toFixed(0)} MiB and grew by ${grown.toFixed(0)} MiB at most`);
  expect(grown).toBeLessThan(uploads * mebibytesEach);
});

test(`a context and a layer of ${String(large)} MiB take no more of the worker's memory than small ones`, async () => {
  const projects = await ask<{ items: { id: string }[] }>("/v1/projects");
  const peak = async (size: number) => {
    const dockerfile = `FROM scratch\nCOPY . /\nRUN ["/busybox", "dd", "if=/dev/zero", "of=/written", "bs=1M", "count=${String(size)}"]\n`;
    const busybox = entry("busybox", { content: readFileSync("/bin/busybox"), mode: 0o755 });
    const zero = { ...entry("zero"), size: size * 2 ** 20, content: zeros(size) };
    const context = writeTar([entry("Dockerfile", { content: dockerfile }), busybox, zero]);
    memory.reset();
    const { text } = await upload(projects.items[0]?.id ?? "", context, 120);
    expect((JSON.parse(text) as { status: string }).status, text).toBe("succeeded");
    return memory.read("VmHWM");
  };
  const memory = memoryOf("worker");
  const [, small, grown] = [await peak(8), await peak(9), await peak(large)];
  console.log(`the worker took ${small.toFixed(0)} MiB at most, and ${grown.toFixed(0)} MiB with much`);
  expect(grown - small).toBeLessThan(large / 2);
});
