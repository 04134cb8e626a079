import { once } from "node:events";
import { readFileSync, writeFileSync } from "node:fs";
import { request } from "node:http";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { Instance } from "../support/berth.ts";

// The API stores uploads as they come: what one takes of its memory does not depend on its size.

const uploads = 50;
const mebibytes = 16;
/** What one upload may take of the API's memory while it is stored: buffers of sockets, streams and files. */
const mebibytesEach = 4;
let berth: Instance;

beforeAll(async () => {
  berth = await Instance.create();
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

/** Sends zeros as a build's context, as fast as they are taken; the answer's status. */
async function upload(project: string): Promise<number> {
  const { host, port } = berth.config.listen;
  const outgoing = request({
    host,
    port,
    method: "POST",
    path: "/v1/builds?tag=zeros:1",
    headers: { authorization: `Bearer ${berth.token}`, "berth-project": project, "content-type": "application/x-tar" },
  });
  const answered = once(outgoing, "response") as Promise<[{ statusCode: number; resume(): void }]>;
  const chunk = Buffer.alloc(2 ** 18);
  for (let sent = 0; sent < mebibytes * 2 ** 20; sent += chunk.length) {
    if (!outgoing.write(chunk)) await once(outgoing, "drain");
  }
  outgoing.end();
  const [response] = await answered;
  response.resume();
  return response.statusCode;
}

test(`${String(uploads)} uploads of ${String(mebibytes)} MiB at once take no more of the API's memory than their buffers`, async () => {
  const projects = await ask<{ items: { id: string }[] }>("/v1/projects");
  const other = await ask<{ id: string }>("/v1/projects", { name: "second" });
  const of = [projects.items[0]?.id ?? "", other.id];
  const pid = Number(/^\d+/.exec(readFileSync(join(berth.config.runDir, "api.pid"), "utf8"))?.[0]);
  const memory = (field: string) =>
    Number(new RegExp(`^${field}:\\s+(\\d+)`, "m").exec(readFileSync(`/proc/${String(pid)}/status`, "utf8"))?.[1]) /
    1024;
  // Code that is used for the first time is compiled and kept.
  await upload(of[0] ?? "");
  const before = memory("VmRSS");
  // From now on the peak is counted anew (proc(5), clear_refs).
  writeFileSync(`/proc/${String(pid)}/clear_refs`, "5");
  const statuses = await Promise.all(Array.from({ length: uploads }, (_, i) => upload(of[i % 2] ?? "")));
  expect(statuses.filter((status) => status !== 201 && status !== 202)).toEqual([]);
  const grown = memory("VmHWM") - before;
  console.log(`the API had ${before.toFixed(0)} MiB and grew by ${grown.toFixed(0)} MiB at most`);
  expect(grown).toBeLessThan(uploads * mebibytesEach);
});
