import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { neededBlobs } from "../../src/db/unneeded-blobs.ts";
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

interface Asked {
  method?: string;
  token?: string | null;
  headers?: Record<string, string>;
  body?: Uint8Array;
}

async function ask(path: string, options: Asked = {}) {
  const { method = "GET", token = acme.tokens.viewer, headers = {}, body } = options;
  const authorization = token === null ? {} : { authorization: basic(token) };
  const response = await api.app.request(path, {
    method,
    headers: { ...authorization, ...headers },
    ...(body === undefined ? {} : { body: new Uint8Array(body) }),
  });
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
    for (const n of ["x", "", "-1", "1.5"]) expect((await ask(`/v2/acme/web/tags/list?n=${n}`)).status, n).toBe(400);
    // Who asks for more than a page gets a page.
    for (const [query, tags] of [
      ["n=10000", ["1", "2"]],
      ["n=0", []],
      ["last=1", ["2"]],
      ["last=zzz", []],
    ] as const) {
      const { status, bytes, headers } = await ask(`/v2/acme/web/tags/list?${query}`);
      expect([status, JSON.parse(bytes.toString()), headers.get("link")], query).toEqual([
        ...[200, { name: "acme/web", tags }, null],
      ]);
    }
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

  test("lets who may only look push nothing, and nobody what is not of the protocol", async () => {
    for (const [method, path] of [
      ["POST", "web/blobs/uploads/"],
      ["PATCH", "web/blobs/uploads/x"],
      ["PUT", "web/manifests/1"],
    ] as const) {
      const { status, problem } = await ask(`/v2/acme/${path}`, { method });
      expect([status, problem()], path).toEqual([403, "DENIED"]);
    }
    const { status, problem } = await ask("/v2/acme/web/manifests/1", {
      method: "DELETE",
      token: acme.tokens.deployer,
    });
    expect([status, problem()]).toEqual([405, "UNSUPPORTED"]);
  });
});

describe("pushing", () => {
  const token = () => acme.tokens.deployer;
  const send = (method: string, path: string, body?: Uint8Array, headers: Record<string, string> = {}) =>
    ask(path, { method, token: token(), headers, ...(body === undefined ? {} : { body }) });
  const types = {
    manifest: "application/vnd.oci.image.manifest.v1+json",
    index: "application/vnd.oci.image.index.v1+json",
    config: "application/vnd.oci.image.config.v1+json",
    layer: "application/vnd.oci.image.layer.v1.tar",
  };
  const descriptor = (mediaType: string, bytes: Buffer) => ({ mediaType, digest: sha256(bytes), size: bytes.length });

  async function sendBlob(bytes: Buffer, repository = "pushed"): Promise<void> {
    const { headers } = await send("POST", `/v2/acme/${repository}/blobs/uploads/`);
    const done = await send("PUT", `${headers.get("location") ?? ""}&digest=${sha256(bytes)}`, bytes);
    expect(done.status).toBe(201);
  }

  /** A config, a layer and the manifest that names them; `sent`: both blobs are. */
  async function image(text: string, { architecture = "amd64", sent = true } = {}) {
    const layerBytes = await collect(writeTar([entry("f", { content: text })]));
    const document = {
      architecture,
      os: "linux",
      config: {},
      rootfs: { type: "layers", diff_ids: [sha256(layerBytes)] },
    };
    const config = Buffer.from(JSON.stringify(document));
    if (sent) for (const bytes of [layerBytes, config]) await sendBlob(bytes);
    const layers = [descriptor(types.layer, layerBytes)];
    const manifest = { schemaVersion: 2, mediaType: types.manifest, config: descriptor(types.config, config), layers };
    return { layer: layerBytes, config, manifest: Buffer.from(JSON.stringify(manifest)) };
  }

  const putManifest = (path: string, bytes: Buffer, type = types.manifest) =>
    send("PUT", `/v2/acme/${path}`, bytes, { "content-type": type });

  test("takes blobs at once, in one stream and in pieces, and the manifest that names them", async () => {
    const { layer: bytes, config, manifest } = await image("pieces", { sent: false });
    const at = "/v2/acme/pushed/blobs/uploads/";
    // At once.
    const whole = await send("POST", `${at}?digest=${sha256(config)}`, config);
    expect([whole.status, whole.headers.get("location")]).toEqual([201, `/v2/acme/pushed/blobs/${sha256(config)}`]);
    // In pieces, each of which tells where it begins.
    const begun = await send("POST", at);
    expect([begun.status, begun.headers.get("range")]).toEqual([202, "0-0"]);
    const half = bytes.length / 2;
    let next = begun.headers.get("location") ?? "";
    for (const [start, end] of [
      [0, half],
      [half, bytes.length],
    ] as const) {
      const wrong = await send("PATCH", next, bytes.subarray(start, end), {
        "content-range": `${String(start + 1)}-${String(end)}`,
      });
      expect([wrong.status, wrong.problem()]).toEqual([416, "BLOB_UPLOAD_INVALID"]);
      const range = { "content-range": `${String(start)}-${String(end - 1)}` };
      const piece = await send("PATCH", next, bytes.subarray(start, end), range);
      expect([piece.status, piece.headers.get("range")]).toEqual([202, `0-${String(end - 1)}`]);
      next = piece.headers.get("location") ?? "";
      expect((await send("GET", next)).headers.get("range")).toBe(`0-${String(end - 1)}`);
    }
    const other = await send("PUT", `${next}&digest=${sha256(config)}`);
    expect([other.status, other.problem()]).toEqual([400, "DIGEST_INVALID"]);
    expect((await send("PUT", `${next}&digest=${sha256(bytes)}`)).status).toBe(201);
    expect((await send("HEAD", `/v2/acme/pushed/blobs/${sha256(bytes)}`)).status).toBe(200);

    const put = await putManifest("pushed/manifests/1", manifest);
    expect([put.status, put.headers.get("docker-content-digest")]).toEqual([201, sha256(manifest)]);
    expect((await ask("/v2/acme/pushed/manifests/1")).bytes.equals(manifest)).toBe(true);
    const known = await api.app.request("/v1/images/pushed%3A1", { headers: { authorization: `Bearer ${token()}` } });
    expect(await known.json()).toMatchObject({
      digest: sha256(manifest),
      tags: ["pushed:1"],
      layers: [{ diffId: sha256(bytes) }],
    });
  });

  test("gives and removes an image that was sent by digest", async () => {
    const { manifest } = await image("by digest");
    const digest = sha256(manifest);
    expect((await putManifest(`nameless/manifests/${digest}`, manifest)).status).toBe(201);
    expect((await ask(`/v2/acme/nameless/manifests/${digest}`)).bytes.equals(manifest)).toBe(true);
    expect(JSON.parse((await ask("/v2/acme/nameless/tags/list")).bytes.toString())).toMatchObject({ tags: [] });
    const path = `/v1/images/${encodeURIComponent(`nameless@${digest}`)}`;
    const removed = await api.app.request(path, {
      ...{ method: "DELETE", headers: { authorization: `Bearer ${token()}` } },
    });
    expect(await removed.json()).toEqual({ untagged: [`nameless@${digest}`], deleted: digest });
    expect((await ask(`/v2/acme/nameless/manifests/${digest}`)).problem()).toBe("MANIFEST_UNKNOWN");
  });

  test("gives nobody a blob for naming its digest", async () => {
    const theirs = await image("of another project", { sent: false });
    const stores = [theirs.layer, theirs.config];
    for (const bytes of stores) await api.services.blobs.put([bytes], { maxBytes: bytes.length });
    // The operator sends them to another project: to this one they are as unknown as before.
    for (const bytes of stores) {
      const begun = await ask("/v2/other/x/blobs/uploads/", { method: "POST", token: other.tokens.deployer });
      const location = `${begun.headers.get("location") ?? ""}&digest=${sha256(bytes)}`;
      expect((await ask(location, { method: "PUT", token: other.tokens.deployer, body: bytes })).status).toBe(201);
      // Nor does an upload of theirs go on here.
      const here = location.replace("/v2/other/", "/v2/acme/");
      expect((await send("PUT", here)).problem()).toBe("BLOB_UPLOAD_UNKNOWN");
      expect((await send("HEAD", `/v2/acme/pushed/blobs/${sha256(bytes)}`)).status).toBe(404);
      const mount = await send("POST", `/v2/acme/pushed/blobs/uploads/?mount=${sha256(bytes)}&from=other/x`);
      expect(mount.status).toBe(202);
    }
    const put = await putManifest("pushed/manifests/stolen", theirs.manifest);
    expect([put.status, put.problem()]).toEqual([404, "MANIFEST_BLOB_UNKNOWN"]);
    // What it sends itself it may name.
    for (const bytes of stores) await sendBlob(bytes);
    expect((await putManifest("pushed/manifests/own", theirs.manifest)).status).toBe(201);
  });

  test("mounts what another of the project's repositories has", async () => {
    const { layer: bytes, config, manifest } = await image("mounted");
    expect((await putManifest("from/manifests/1", manifest)).status).toBe(201);
    await api.database.owner`delete from uploaded_blobs`;
    expect((await putManifest("to/manifests/1", manifest)).problem()).toBe("MANIFEST_BLOB_UNKNOWN");
    for (const blob of [bytes, config]) {
      const mount = await send("POST", `/v2/acme/to/blobs/uploads/?mount=${sha256(blob)}&from=acme/from`);
      expect(mount.status).toBe(201);
    }
    expect((await putManifest("to/manifests/1", manifest)).status).toBe(201);
  });

  test("keeps of an index the image for this machine, and what else it names as it came", async () => {
    const images = [
      await image("big", { architecture: "s390x" }),
      await image("ours", { architecture: process.arch === "x64" ? "amd64" : "arm64" }),
    ];
    const attestation = Buffer.from(
      JSON.stringify({
        ...{
          schemaVersion: 2,
          mediaType: types.manifest,
          config: descriptor(types.config, images[0]?.config ?? Buffer.alloc(0)),
        },
        layers: [{ ...descriptor("application/vnd.in-toto+json", Buffer.from("{}")) }],
      }),
    );
    for (const { manifest } of images)
      expect((await putManifest(`many/manifests/${sha256(manifest)}`, manifest)).status).toBe(201);
    expect((await putManifest(`many/manifests/${sha256(attestation)}`, attestation)).status).toBe(201);
    const platforms = ["s390x", process.arch === "x64" ? "amd64" : "arm64"];
    const manifests = [
      ...images.map(({ manifest }, i) => ({
        ...descriptor(types.manifest, manifest),
        platform: { os: "linux", architecture: platforms[i] },
      })),
      { ...descriptor(types.manifest, attestation), platform: { os: "unknown", architecture: "unknown" } },
    ];
    const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: types.index, manifests }));
    expect((await putManifest("many/manifests/1", index, types.index)).status).toBe(201);
    const ours = images[1]?.manifest ?? Buffer.alloc(0);
    expect((await ask("/v2/acme/many/manifests/1")).bytes.equals(ours)).toBe(true);
    // It has a name now, and needs none that only kept it.
    const [row] = await api.database
      .owner`select array_agg(tag) as tags from tags where repository = 'many' and digest = ${sha256(ours)}`;
    expect(row).toEqual({ tags: ["1"] });
    // Nor does what the index names besides become an image that nobody asked for and nothing removes.
    const listed = await api.app.request("/v1/images?repository=many", {
      headers: { authorization: `Bearer ${token()}` },
    });
    expect(((await listed.json()) as { items: unknown[] }).items).toMatchObject([{ tags: ["many:1"] }]);
  });

  test("says what is wrong with a manifest, and records nothing of it", async () => {
    const { manifest, config } = await image("wrong");
    const text = manifest.toString();
    const wrong: [string, Buffer, string | undefined, number, string][] = [
      [`pushed/manifests/sha256:${"0".repeat(64)}`, manifest, undefined, 400, "DIGEST_INVALID"],
      ["pushed/manifests/w", Buffer.from("no JSON"), undefined, 400, "MANIFEST_INVALID"],
      ["pushed/manifests/w", manifest, "text/plain", 400, "MANIFEST_INVALID"],
      [
        "pushed/manifests/w",
        Buffer.from(text.replace(`"size":${String(config.length)}`, '"size":1')),
        undefined,
        404,
        "MANIFEST_BLOB_UNKNOWN",
      ],
      ["pushed/manifests/w", Buffer.alloc(5 << 20, " "), undefined, 413, "SIZE_INVALID"],
      ["pushed/manifests/no%20tag", manifest, undefined, 400, "NAME_INVALID"],
      // What a reference may have besides is no part of a tag.
      ["pushed/manifests/5000%2Fother:w", manifest, undefined, 400, "NAME_INVALID"],
      [`pushed/manifests/w@sha256:${"0".repeat(64)}`, manifest, undefined, 400, "NAME_INVALID"],
      ["docker.io/library/x/manifests/1", manifest, undefined, 400, "NAME_INVALID"],
      ["UPPER/manifests/1", manifest, undefined, 400, "NAME_INVALID"],
    ];
    const count = async () => (await api.database.owner`select count(*)::int as n from images`)[0]?.["n"] as number;
    const before = await count();
    for (const [path, bytes, type, status, code] of wrong) {
      const put = await putManifest(path, bytes, type);
      expect([put.status, put.problem()], path).toEqual([status, code]);
    }
    expect(await count()).toBe(before);
  });

  test("keeps what was sent for a day, and no longer", async () => {
    const bytes = Buffer.from("sent, and named by nothing");
    await sendBlob(bytes);
    const { owner } = api.database;
    expect(await neededBlobs(owner)).toContain(sha256(bytes));
    await owner`update uploaded_blobs set at = now() - interval '25 hours' where digest = ${sha256(bytes)}`;
    expect(await neededBlobs(owner)).not.toContain(sha256(bytes));
    expect((await send("HEAD", `/v2/acme/pushed/blobs/${sha256(bytes)}`)).status).toBe(404);
    await sendBlob(Buffer.from("another"));
    expect((await owner`select count(*)::int as n from uploaded_blobs where digest = ${sha256(bytes)}`)[0]).toEqual({
      n: 0,
    });
  });
});
