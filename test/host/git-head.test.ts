import { once } from "node:events";
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import { BerthError } from "../../src/core/errors.ts";
import { readHead } from "../../src/engine/build/git-head.ts";
import { OutboundPolicy } from "../../src/image/outbound.ts";
import { type GitServer, gitLogin, startGitServer } from "../support/git-server.ts";

/** A host id that nothing has: above all blocks of instances. */
const uid = 2_000_000_000 + process.pid;

let server: GitServer;
let taken = 0;
beforeAll(async () => {
  server = await startGitServer();
});
afterAll(() => server.close());
afterEach(() => expect(taken).toBe(0));

const means = {
  sandboxes: { takeSlot: () => ++taken, idBaseOf: () => uid, freeSlot: () => taken-- },
  outbound: new OutboundPolicy(["127.0.0.0/8"]),
};
const url = (path: string, port = server.port) => `http://127.0.0.1:${String(port)}${path}`;
const read = (ref: string, more: { url?: string; auth?: typeof gitLogin } = {}) =>
  readHead({ url: url("/site.git"), ref, auth: null, ...more }, means, AbortSignal.timeout(60_000));
const refusal = (ref: string, more: Parameters<typeof read>[1] = {}) =>
  read(ref, more).then(
    () => expect.unreachable("it was read"),
    (error: unknown) => (error instanceof BerthError ? error.code : error),
  );

test("a branch is what it is now, and HEAD the default branch by its name", async () => {
  expect(await refusal("HEAD")).toBe("ref_not_found");
  const first = server.commit("main", { page: "one" });
  const second = server.commit("feature/x", { page: "two" });
  // What only ends as the name does is another ref.
  server.commit("x/refs/heads/main", { page: "three" });
  server.git("tag", "feature");
  expect(await read("HEAD")).toEqual({ commit: first, branch: "main" });
  expect(await read("refs/heads/main")).toEqual({ commit: first, branch: "main" });
  expect(await read("refs/heads/feature/x")).toEqual({ commit: second, branch: "feature/x" });
  expect(await refusal("refs/heads/feature")).toBe("ref_not_found");
  expect(await read("HEAD", { url: url("/private.git"), auth: gitLogin })).toMatchObject({ commit: first });
  expect(await refusal("HEAD", { url: url("/private.git") })).toBe("repository_denied");
  expect(await refusal("HEAD", { url: url("/nope.git") })).toBe("repository_not_found");
});

/** Reads HEAD of a server that answers so. */
async function from(answer: (response: ServerResponse) => void): Promise<unknown> {
  const hostile = createServer((_, response) => {
    response.on("error", () => undefined);
    response.writeHead(200, { "content-type": "application/x-git-upload-pack-advertisement" });
    answer(response);
  });
  hostile.listen(0, "127.0.0.1");
  await once(hostile, "listening");
  try {
    return await refusal("refs/heads/main", { url: url("/x.git", (hostile.address() as AddressInfo).port) });
  } finally {
    hostile.closeAllConnections();
    hostile.close();
  }
}

const packet = (text: string) => `${(text.length + 4).toString(16).padStart(4, "0")}${text}`;
const service = `${packet("# service=git-upload-pack\n")}0000`;
const id = "a".repeat(40);

test.each([
  ["a page", "<html>"],
  ["nothing", ""],
  ["no refs", `${service}${packet(`${"0".repeat(40)} capabilities^{}\0\n`)}0000`],
  ["a name that is none", `${service}${packet(`${id} refs/heads/main/../x\0\n`)}0000`],
  ["an id that is none", `${service}${packet(`${"z".repeat(40)} refs/heads/main\0\n`)}0000`],
  ["half an answer", `${service}${packet(`${id} refs/heads/main\0\n`).slice(0, 20)}`],
])("a server that answers with %s has no such branch, or is none", async (_, text) => {
  const code = await from((response) => response.end(text));
  expect(["ref_not_found", "repository_unreachable", "repository_not_found"]).toContain(code);
});

test("one that never stops naming refs fills no memory and ends with an error", async () => {
  const name = (n: number) => `refs/heads/${"x".repeat(60_000)}${String(n)}/refs/heads/main`;
  let sent = 0;
  const code = await from((response) => {
    response.write(`${service}${packet(`${id} ${name(0)}\0\n`)}`);
    const more = () => {
      while (!response.destroyed && response.write(packet(`${id} ${name(++sent)}\n`)));
    };
    response.on("drain", more);
    more();
  });
  expect(code).toBe("invalid_context");
  expect(sent * 60_000).toBeLessThan(2 ** 30);
});
