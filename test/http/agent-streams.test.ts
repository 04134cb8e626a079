import { mkdtemp, rm } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import { ask, createApi, type Problem, type TestApi, type TestProject, testAgentKey } from "../support/api.ts";

let api: TestApi;
let project: TestProject;
let agent: Server;
let directory: string;
let host: string;
let container: string;
/** What the host answers in the test. */
let answer: (request: IncomingMessage, response: ServerResponse) => void;
const asked: { url: string; authorization: string | undefined }[] = [];

beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "berth-test-agent-"));
  const socket = join(directory, "agent.sock");
  agent = createServer((request, response) => {
    asked.push({ url: request.url ?? "", authorization: request.headers.authorization });
    answer(request, response);
  });
  await new Promise<void>((resolve) => agent.listen(socket, resolve));
  api = await createApi(inject("postgresSocketDir"));
  project = await api.project("acme");
  host = await api.host({ agentUrl: `unix:${socket}` });
  container = (
    await ask<{ id: string }>(api.app, project.tokens.deployer, "POST", "/v1/containers", {
      image: "debian",
      name: "web",
    })
  ).body.id;
  await api.database
    .owner`update containers set status = 'running', seen_rev = wanted_rev, run = 1 where id = ${container}`;
});
afterAll(async () => {
  await api.close();
  agent.closeAllConnections();
  await new Promise((resolve) => agent.close(resolve));
  await rm(directory, { recursive: true });
});
beforeEach(() => {
  asked.length = 0;
});

const lines = [
  { at: "2025-11-24T10:00:00.000000001Z", stream: "stdout", text: "one", partial: false },
  { at: "2025-11-24T10:00:00.000000001Z", stream: "stderr", text: "err", partial: false },
  { at: "2025-11-24T10:00:00.000000002Z", stream: "stdout", text: "half ", partial: true },
  { at: "2025-11-24T10:00:00.000000003Z", stream: "stdout", text: "line\u001b[31m", partial: false },
];

const sendLines: typeof answer = (_, response) => {
  // In two pieces that cut a line, as a socket may.
  const text = lines.map((line) => `${JSON.stringify(line)}\n`).join("");
  response.write(text.slice(0, 100));
  setImmediate(() => response.end(text.slice(100)));
};

const logs = (query = "", headers: Record<string, string> = {}) =>
  api.app.request(`/v1/containers/web/logs${query}`, {
    headers: { authorization: `Bearer ${project.tokens.viewer}`, ...headers },
  });

describe("logs", () => {
  test("are text as the process wrote it, lines that the monitor split put together", async () => {
    answer = sendLines;
    const response = await logs("?tail=5&stderr=false");
    expect(response.headers.get("content-type")).toContain("text/plain");
    expect(await response.text()).toBe("one\nerr\nhalf line\u001b[31m\n");
    expect(asked).toEqual([
      {
        url: `/containers/${container}/logs?follow=false&stdout=true&stderr=false&tail=5`,
        authorization: `Bearer ${testAgentKey(host)}`,
      },
    ]);
    expect(await (await logs("?timestamps=true")).text()).toMatch(/^2025\S+Z one\n2025\S+Z err\n2025\S+Z half line/);
  });

  test("are events that go on behind the last one, also among lines of one time", async () => {
    answer = sendLines;
    const all = await (await logs("", { accept: "text/event-stream" })).text();
    const ids = [...all.matchAll(/^id: (.*)$/gm)].map(([, id]) => id ?? "");
    expect(ids).toHaveLength(4);
    expect(new Set(ids).size).toBe(4);
    const rest = await (await logs("", { accept: "text/event-stream", "last-event-id": ids[0] ?? "" })).text();
    expect([...rest.matchAll(/"text":"(\w+)/g)].map(([, text]) => text)).toEqual(["err", "half", "line"]);
    expect(asked.at(-1)?.url).toContain("since=2025-11-24T10%3A00%3A00.000000001Z");
  });

  test("a reader who goes away takes the host's stream along", async () => {
    const closed = Promise.withResolvers<undefined>();
    answer = (request, response) => {
      response.write(`${JSON.stringify(lines[0])}\n`);
      request.socket.once("close", () => closed.resolve(undefined));
    };
    const response = await logs("?follow=true");
    const reader = response.body?.getReader();
    await reader?.read();
    await reader?.cancel();
    await closed.promise;
    await expect.poll(() => api.services.streams.size).toBe(0);
  });

  test.each(["logs", "files?path=/"])("too many streams leave none open at the host: %s", async (noun) => {
    const principal = { tokenId: "tok_x", role: "deployer" as const, project: null, tokenHash: Buffer.alloc(0) };
    const held = Array.from({ length: 20 }, () => api.services.streams.open(principal, project.id));
    const closed = Promise.withResolvers<undefined>();
    answer = (request, response) => {
      if (request.url?.includes("/stat") === true) {
        response.end('{"name":"","type":"directory","mode":493,"uid":0,"gid":0,"size":0,"mtime":""}');
        return;
      }
      response.write("x");
      request.socket.once("close", () => closed.resolve(undefined));
    };
    const path = `/v1/containers/web/${noun}`;
    expect((await ask<Problem>(api.app, project.tokens.deployer, "GET", path)).body.code).toBe("too_many_requests");
    await closed.promise;
    for (const each of held) each.close();
  });

  test("a host that is away is 503, whatever it answers", async () => {
    answer = (request) => request.socket.destroy();
    expect(await ask<Problem>(api.app, project.tokens.viewer, "GET", "/v1/containers/web/logs")).toMatchObject({
      status: 503,
      body: { code: "host_unavailable" },
    });
    answer = (_, response) => response.writeHead(500).end("<html>");
    expect((await ask<Problem>(api.app, project.tokens.viewer, "GET", "/v1/containers/web/logs")).body.code).toBe(
      "host_unavailable",
    );
    const gone = await ask<Problem>(api.app, project.tokens.viewer, "GET", "/v1/containers/web/logs");
    expect(gone.headers.get("retry-after")).toBe("1");
  });
});

describe("exec", () => {
  const exec = (body: object) =>
    ask<Problem & { exitCode: number }>(api.app, project.tokens.deployer, "POST", "/v1/containers/web/exec", body);

  test("answers what the command wrote", async () => {
    answer = (_, response) =>
      response.end(JSON.stringify({ exitCode: 3, stdout: "out", stderr: "err", truncated: false, timedOut: true }));
    expect(await exec({ command: ["false"] })).toMatchObject({
      status: 200,
      body: { exitCode: 3, stdout: "out", stderr: "err", truncated: false, timedOut: true },
    });
    expect(asked[0]?.url).toBe(`/containers/${container}/exec`);
  });

  test("passes the host's own error on", async () => {
    answer = (_, response) =>
      response.writeHead(400).end(JSON.stringify({ code: "command_not_found", detail: "No nope." }));
    expect(await exec({ command: ["nope"] })).toMatchObject({
      status: 400,
      body: { code: "command_not_found", detail: "No nope." },
    });
  });

  test("is refused before the host is asked", async () => {
    expect(await exec({ command: [] })).toMatchObject({ status: 400 });
    expect(await exec({ command: ["sh"], tty: true })).toMatchObject({ status: 501, body: { code: "not_supported" } });
    await api.database.owner`update containers set status = 'exited' where id = ${container}`;
    expect(await exec({ command: ["id"] })).toMatchObject({ status: 409, body: { code: "invalid_state" } });
    expect(asked).toEqual([]);
  });
});
