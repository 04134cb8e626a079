import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { writeTar } from "../../src/image/tar-write.ts";
import { createApi, type TestApi, type TestProject } from "../support/api.ts";
import { collect, entry, sha256 } from "../support/image.ts";

let api: TestApi;
let acme: TestProject;
let other: TestProject;
let layer: { digest: string; bytes: Buffer };
const layerTar = () => collect(writeTar([entry("f", { content: "content of a layer" })]));

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  [acme, other] = [await api.project("acme"), await api.project("other")];
  const tar = await layerTar();
  const config = JSON.stringify({
    ...{ architecture: "amd64", os: "linux", config: {} },
    rootfs: { type: "layers", diff_ids: [sha256(tar)] },
  });
  const RepoTags = ["web:1", "web:2", "team/api:1", "registry.example/x:9"];
  const manifest = JSON.stringify([{ Config: "c.json", RepoTags, Layers: ["l.tar"] }]);
  const entries = { "c.json": config, "l.tar": tar, "manifest.json": manifest };
  const body = await collect(writeTar(Object.entries(entries).map(([path, content]) => entry(path, { content }))));
  const loaded = await api.app.request("/v1/images/archive", {
    method: "POST",
    headers: { authorization: `Bearer ${acme.tokens.deployer}`, "content-type": "application/x-tar" },
    body: new Uint8Array(body),
  });
  expect(loaded.status).toBe(201);
  const image = (await loaded.json()) as { items: { layers: { digest: string }[] }[] };
  const digest = image.items[0]?.layers[0]?.digest ?? "";
  layer = { digest, bytes: await collect((await api.services.blobs.open(digest)) as AsyncIterable<Uint8Array>) };
});
afterAll(() => api.close());

const basic = (token: string) => `Basic ${Buffer.from(`anybody:${token}`).toString("base64")}`;

async function ask(
  path: string,
  options: { method?: string; token?: string | null; headers?: Record<string, string> } = {},
) {
  const { method = "GET", token = acme.tokens.viewer, headers = {} } = options;
  const authorization = token === null ? {} : { authorization: basic(token) };
  const response = await api.app.request(path, { method, headers: { ...authorization, ...headers } });
  const bytes = Buffer.from(await response.arrayBuffer());
  const problem = () => (JSON.parse(bytes.toString()) as { errors: { code: string }[] }).errors[0]?.code;
  return { status: response.status, headers: response.headers, bytes, problem };
}

describe("the registry", () => {
  test("asks who is there, and is entered with a token as Basic or Bearer", async () => {
    const stranger = await ask("/v2/", { token: null });
    expect([stranger.status, stranger.problem()]).toEqual([401, "UNAUTHORIZED"]);
    expect(stranger.headers.get("www-authenticate")).toMatch(/^Basic realm="Berth"/);
    expect((await ask("/v2/", { token: "berth_wrong" })).status).toBe(401);
    expect((await ask("/v2")).status).toBe(200);
    const { status, headers } = await ask("/v2/", {
      token: null,
      headers: { authorization: `Bearer ${acme.tokens.viewer}` },
    });
    expect([status, headers.get("docker-distribution-api-version")]).toEqual([200, "registry/2.0"]);
  });

  test("gives manifests by tag and digest, and their blobs, whole and in part", async () => {
    const byTag = await ask("/v2/acme/web/manifests/1");
    expect(byTag.status).toBe(200);
    const digest = byTag.headers.get("docker-content-digest") ?? "";
    expect(sha256(byTag.bytes)).toBe(digest);
    expect(byTag.headers.get("content-type")).toBe("application/vnd.oci.image.manifest.v1+json");
    expect(byTag.headers.get("content-length")).toBe(String(byTag.bytes.length));
    for (const path of [`web/manifests/${digest}`, "team/api/manifests/1", "registry.example/x/manifests/9"]) {
      expect((await ask(`/v2/acme/${path}`)).bytes.equals(byTag.bytes), path).toBe(true);
    }
    const head = await ask("/v2/acme/web/manifests/1", { method: "HEAD" });
    expect([head.status, head.bytes.length, head.headers.get("docker-content-digest")]).toEqual([200, 0, digest]);
    expect(head.headers.get("content-length")).toBe(String(byTag.bytes.length));

    const { config } = JSON.parse(byTag.bytes.toString()) as { config: { digest: string } };
    expect(sha256((await ask(`/v2/acme/web/blobs/${config.digest}`)).bytes)).toBe(config.digest);
    const path = `/v2/acme/team/api/blobs/${layer.digest}`;
    const whole = await ask(path);
    expect([whole.status, whole.bytes.equals(layer.bytes)]).toEqual([200, true]);
    const size = layer.bytes.length;
    for (const [range, start, end] of [
      ["bytes=10-19", 10, 20],
      ["bytes=10-", 10, size],
      ["bytes=-5", size - 5, size],
      ["bytes=10-999999", 10, size],
    ] as const) {
      const part = await ask(path, { headers: { range } });
      expect([part.status, part.bytes.equals(layer.bytes.subarray(start, end))], range).toEqual([206, true]);
      expect(part.headers.get("content-range")).toBe(`bytes ${String(start)}-${String(end - 1)}/${String(size)}`);
    }
    expect((await ask(path, { headers: { range: "bytes=999999-" } })).status).toBe(416);
    expect((await ask(path, { headers: { range: "bytes=1-2,4-5" } })).status).toBe(200);
  });

  test("lists tags in pages", async () => {
    expect(JSON.parse((await ask("/v2/acme/web/tags/list")).bytes.toString())).toEqual({
      name: "acme/web",
      tags: ["1", "2"],
    });
    const first = await ask("/v2/acme/web/tags/list?n=1");
    expect(JSON.parse(first.bytes.toString())).toMatchObject({ tags: ["1"] });
    const [, next = ""] = /^<(.+)>; rel="next"$/.exec(first.headers.get("link") ?? "") ?? [];
    const second = await ask(next);
    expect([JSON.parse(second.bytes.toString()), second.headers.get("link")]).toEqual([
      { name: "acme/web", tags: ["2"] },
      null,
    ]);
    expect((await ask("/v2/acme/none/tags/list")).problem()).toBe("NAME_UNKNOWN");
    expect((await ask("/v2/acme/web/tags/list?n=x")).status).toBe(400);
  });

  test("knows nothing of other projects, nor what no image of the repository has", async () => {
    const stray = Buffer.from("a blob that is in the store and in no image");
    await api.services.blobs.put([stray], { maxBytes: stray.length });
    for (const [path, code] of [
      ["acme/web/manifests/3", "MANIFEST_UNKNOWN"],
      [`acme/web/manifests/sha256:${"0".repeat(64)}`, "MANIFEST_UNKNOWN"],
      ["acme/none/manifests/1", "MANIFEST_UNKNOWN"],
      ["acme/web/manifests/@%25", "MANIFEST_UNKNOWN"],
      [`acme/web/blobs/${sha256(stray)}`, "BLOB_UNKNOWN"],
      [`acme/none/blobs/${layer.digest}`, "BLOB_UNKNOWN"],
      ["acme/web/blobs/../../etc/passwd", "NAME_UNKNOWN"],
      ["acme/web/nothing", "NAME_UNKNOWN"],
    ] as const) {
      const { status, problem } = await ask(`/v2/${path}`);
      expect([status, problem()], path).toEqual([404, code]);
    }
    const token = other.tokens.admin;
    // Another's project is none; in one's own there is nothing of it.
    expect((await ask("/v2/acme/web/manifests/1", { token })).problem()).toBe("NAME_UNKNOWN");
    expect((await ask(`/v2/acme/web/blobs/${layer.digest}`, { token })).status).toBe(404);
    expect((await ask("/v2/other/web/manifests/1", { token })).problem()).toBe("MANIFEST_UNKNOWN");
    expect((await ask(`/v2/other/web/blobs/${layer.digest}`, { token })).problem()).toBe("BLOB_UNKNOWN");
    // The operator names the project by its path.
    expect((await ask("/v2/acme/web/manifests/1", { token: api.operator })).status).toBe(200);
  });

  test("takes nothing in, and says what does", async () => {
    for (const [method, path] of [
      ["POST", "/v2/acme/web/blobs/uploads/"],
      ["PUT", "/v2/acme/web/manifests/1"],
      ["DELETE", "/v2/acme/web/manifests/1"],
    ] as const) {
      const { status, bytes } = await ask(path, { method });
      expect([status, bytes.toString()]).toEqual([405, expect.stringContaining("pulled here")]);
    }
    expect((await ask("/v2/acme/web/manifests/1")).status).toBe(200);
  });
});
