import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { ClusterStore } from "../../src/image/blobs.ts";
import { createApi, type TestApi, type TestProject } from "../support/api.ts";
import { sha256 } from "../support/image.ts";

let api: TestApi;
let acme: TestProject;
const some = Buffer.from("some blob");

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  acme = await api.project("acme");
});
afterAll(() => api.close());

async function send(method: string, path: string, body?: Uint8Array, headers: Record<string, string> = {}) {
  const response = await api.app.request(path, {
    method,
    headers: { authorization: `Bearer ${acme.tokens.deployer}`, ...headers },
    ...(body === undefined ? {} : { body: new Uint8Array(body) }),
  });
  const bytes = Buffer.from(await response.arrayBuffer());
  const problem = () => (JSON.parse(bytes.toString()) as { errors: { code: string }[] }).errors[0]?.code;
  return { status: response.status, headers: response.headers, bytes, problem };
}

describe("an upload to the registry", () => {
  test("takes what follows, however its range is written, and no other", async () => {
    const bytes = Buffer.from("twenty bytes of blob");
    const piece = async (range: string, part: Buffer, from: string) =>
      send("PATCH", from, part, { "content-range": range, "content-length": String(part.length) });
    for (const [first, second] of [
      ["0-9", "10-19"],
      ["bytes 0-9/20", "bytes 10-19/*"],
      ["bytes=0-9", "bytes=10-19"],
    ] as const) {
      const begun = (await send("POST", "/v2/acme/pushed/blobs/uploads/")).headers.get("location") ?? "";
      const half = await piece(first, bytes.subarray(0, 10), begun);
      expect(half.status, first).toBe(202);
      const next = half.headers.get("location") ?? "";
      for (const wrong of [first, second.replace("19", "18")]) {
        expect((await piece(wrong, bytes.subarray(10), next)).problem(), wrong).toBe("BLOB_UPLOAD_INVALID");
      }
      const last = (await piece(second, bytes.subarray(10), next)).headers.get("location") ?? "";
      expect((await send("PUT", `${last}&digest=${sha256(bytes)}`)).status).toBe(201);
    }
    expect((await send("GET", `/v2/acme/pushed/blobs/${sha256(bytes)}`)).bytes.equals(bytes)).toBe(true);
  });

  test("keeps nothing that is not what its sender says, and takes an empty blob", async () => {
    const bytes = Buffer.from("said to be another");
    const at = "/v2/acme/pushed/blobs/uploads/?digest=";
    for (const digest of ["", `SHA256:${"0".repeat(64)}`, `sha512:${"0".repeat(128)}`, `sha256:${"0".repeat(64)}`]) {
      const { status, problem } = await send("POST", `${at}${digest}`, bytes);
      expect([status, problem()], digest).toEqual([400, "DIGEST_INVALID"]);
    }
    expect(await api.services.blobs.size(sha256(bytes))).toBeNull();
    const empty = Buffer.alloc(0);
    expect((await send("POST", `${at}${sha256(empty)}`)).status).toBe(201);
    expect((await send("GET", `/v2/acme/pushed/blobs/${sha256(empty)}`)).headers.get("content-length")).toBe("0");
  });

  test("refuses what is too large before it reads it, and uploads of repositories that can't be", async () => {
    const begun = await send("POST", "/v2/acme/pushed/blobs/uploads/");
    const next = begun.headers.get("location") ?? "";
    const tooLarge = { "content-length": String(2 ** 40) };
    for (const method of ["PATCH", "PUT"]) {
      const { status, problem } = await send(method, `${next}&digest=${sha256(some)}`, some, tooLarge);
      expect([status, problem()], method).toEqual([413, "SIZE_INVALID"]);
    }
    expect((await send("PATCH", next, some)).status).toBe(202);
    for (const method of ["GET", "PATCH", "PUT", "DELETE"]) {
      const { status, problem } = await send(method, next.replace("/pushed/", "/push%C3%A9d/"));
      expect([status, problem()], method).toEqual([400, "NAME_INVALID"]);
    }
  });

  test("does not go on with an upload whose bytes are gone", async () => {
    const bytes = Buffer.from("collected before it was finished");
    const begun = await send("POST", "/v2/acme/pushed/blobs/uploads/");
    const next = (await send("PATCH", begun.headers.get("location") ?? "", bytes)).headers.get("location") ?? "";
    await (api.services.blobs as ClusterStore).delete(sha256(bytes));
    for (const [method, query, body] of [
      ["PUT", `&digest=${sha256(bytes)}`, undefined],
      ["PUT", `&digest=${sha256(Buffer.concat([bytes, bytes]))}`, bytes],
      ["PATCH", "", bytes],
    ] as const) {
      const { status, problem } = await send(method, `${next}${query}`, body);
      expect([status, problem()]).toEqual([404, "BLOB_UPLOAD_UNKNOWN"]);
    }
    const known = await api.database.owner`select from uploaded_blobs where digest = ${sha256(bytes)}`;
    expect(known).toHaveLength(0);
  });

  test("refuses names that nothing can have", async () => {
    for (const path of [
      "web/tags/list?last=%00",
      "we%00b/tags/list",
      "we%00b/manifests/1",
      "web/manifests/%00",
      `we%00b/blobs/${sha256(some)}`,
    ]) {
      const { status, problem } = await send("GET", `/v2/acme/${path}`);
      expect([status, problem()], path).toEqual([400, "NAME_INVALID"]);
    }
    const mount = await send("POST", `/v2/acme/web/blobs/uploads/?mount=${sha256(some)}&from=acme/%00`);
    expect(mount.status).toBe(400);
  });
});
