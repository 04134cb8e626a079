import { gunzipSync, gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import type { ClusterStore } from "../../src/image/blobs.ts";
import { readTar } from "../../src/image/tar-read.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import { ask, createApi, type Problem, type TestApi, type TestProject } from "../support/api.ts";
import { chunked, collect, entry, sha256 } from "../support/image.ts";

let api: TestApi;
let acme: TestProject;
let other: TestProject;

beforeAll(async () => {
  api = await createApi(inject("postgresSocketDir"));
  [acme, other] = [await api.project("acme"), await api.project("other")];
});
afterAll(() => api.close());

interface Image {
  reference: string;
  digest: string;
  tags: string[];
  layers: { digest: string; diffId: string; sizeBytes: number; mediaType: string }[];
}
type Loaded = Problem & { items: Image[] };

async function load(body: Uint8Array, query = "", project = acme, headers: Record<string, string> = {}) {
  const response = await api.app.request(`/v1/images/archive${query}`, {
    method: "POST",
    headers: { authorization: `Bearer ${project.tokens.deployer}`, "content-type": "application/x-tar", ...headers },
    body: new Uint8Array(body),
  });
  return { status: response.status, headers: response.headers, body: (await response.json()) as Loaded };
}

async function save(references: string[], project = acme): Promise<{ status: number; bytes: Buffer }> {
  const query = references.map((text) => `reference=${encodeURIComponent(text)}`).join("&");
  const headers = { authorization: `Bearer ${project.tokens.viewer}` };
  const response = await api.app.request(`/v1/images/archive?${query}`, { headers });
  return { status: response.status, bytes: Buffer.from(await response.arrayBuffer()) };
}

const tarOf = (files: Record<string, string | Buffer>) =>
  collect(writeTar(Object.entries(files).map(([path, content]) => entry(path, { content }))));

async function filesOf(tar: Buffer): Promise<Map<string, Buffer>> {
  const files = new Map<string, Buffer>();
  for await (const { path, content } of readTar(chunked(tar, 65_536))) {
    const parts: Uint8Array[] = [];
    for await (const part of content) parts.push(part);
    files.set(path, Buffer.concat(parts));
  }
  return files;
}

const hex = (bytes: Uint8Array) => sha256(bytes).slice("sha256:".length);
const layerOf = (text: string) => tarOf({ f: text });
const configOf = (layers: readonly Buffer[], more: object = {}) =>
  Buffer.from(
    JSON.stringify({
      ...{ architecture: "amd64", os: "linux", config: { Cmd: ["/f"] }, ...more },
      rootfs: { type: "layers", diff_ids: layers.map(sha256) },
    }),
  );

/** What `docker save` wrote before Docker 25: plain layers under names of their own, of which one links to another's. */
async function dockerArchive(text: string, tags: string[] | null) {
  const layers = [await layerOf(text), await layerOf("two")];
  const config = configOf([...layers, layers[0] ?? Buffer.alloc(0)]);
  const Layers = ["a/layer.tar", "b/layer.tar", "c/layer.tar"];
  const manifest = JSON.stringify([{ Config: `${hex(config)}.json`, RepoTags: tags, Layers }]);
  const entries = [
    entry("./a/VERSION", { content: "1.0" }),
    entry("./a/layer.tar", { content: layers[0] ?? "" }),
    entry("./b/layer.tar", { content: layers[1] ?? "" }),
    entry("./c/layer.tar", { type: "symlink", target: "../a/layer.tar" }),
    entry(`./${hex(config)}.json`, { content: config }),
    entry("./manifest.json", { content: manifest }),
  ];
  return { tar: await collect(writeTar(entries)), config, layers };
}

interface Layout {
  layer?: Buffer;
  config?: Buffer;
  platform?: object;
  annotations?: Record<string, string>;
  /** Files in place of those that belong in it; null: left out. */
  instead?: Record<string, Buffer | null>;
}

/** An OCI layout of one image of one layer. */
async function layout({ layer, config, annotations = {}, instead = {} }: Layout = {}) {
  const gzipped = gzipSync(layer ?? (await layerOf("layout")));
  const configBytes = config ?? configOf([gunzipSync(gzipped)]);
  const descriptor = (mediaType: string, bytes: Buffer) => ({ mediaType, digest: sha256(bytes), size: bytes.length });
  const type = (name: string) => `application/vnd.oci.image.${name}`;
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: type("manifest.v1+json"),
      config: descriptor(type("config.v1+json"), configBytes),
      layers: [descriptor(type("layer.v1.tar+gzip"), gzipped)],
    }),
  );
  const index = { schemaVersion: 2, manifests: [{ ...descriptor(type("manifest.v1+json"), manifest), annotations }] };
  const blob = (bytes: Buffer) => `blobs/sha256/${hex(bytes)}`;
  const files: Record<string, Buffer | null> = {
    "oci-layout": Buffer.from('{"imageLayoutVersion":"1.0.0"}'),
    "index.json": Buffer.from(JSON.stringify(index)),
    [blob(manifest)]: manifest,
    [blob(configBytes)]: configBytes,
    [blob(gzipped)]: gzipped,
    ...instead,
  };
  const kept = Object.entries(files).flatMap(([path, bytes]) => (bytes === null ? [] : [[path, bytes] as const]));
  return {
    tar: await tarOf(Object.fromEntries(kept)),
    digest: sha256(manifest),
    paths: [manifest, configBytes, gzipped].map(blob),
  };
}

describe("loading", () => {
  test("takes in what docker save wrote, its layers compressed, its config and names kept", async () => {
    const { tar, config, layers } = await dockerArchive("one", ["web:1", "registry.example/team/web:2"]);
    for (const body of [tar, gzipSync(tar)]) {
      const { status, body: loaded } = await load(body);
      expect(status, JSON.stringify(loaded)).toBe(201);
      expect(loaded.items).toMatchObject([{ reference: "web:1", tags: ["registry.example/team/web:2", "web:1"] }]);
      const [image] = loaded.items;
      expect(image?.layers.map(({ diffId }) => diffId)).toEqual(
        [layers[0], layers[1], layers[0]].map((one) => sha256(one ?? Buffer.alloc(0))),
      );
      expect(new Set(image?.layers.map(({ mediaType }) => mediaType))).toEqual(
        new Set(["application/vnd.oci.image.layer.v1.tar+gzip"]),
      );
      const stored = await collect(
        (await api.services.blobs.open(image?.layers[1]?.digest ?? "")) as AsyncIterable<Uint8Array>,
      );
      expect(gunzipSync(stored).equals(layers[1] ?? Buffer.alloc(0))).toBe(true);
      expect(await api.services.blobs.size(sha256(config))).toBe(config.length);
    }
  });

  test("takes in an OCI layout as it is, by the name that it has or that is given", async () => {
    const named = await layout({ annotations: { "io.containerd.image.name": "docker.io/library/named:1" } });
    expect((await load(named.tar)).body.items).toMatchObject([
      { reference: "docker.io/library/named:1", digest: named.digest },
    ]);
    const tagOnly = await layout({ annotations: { "org.opencontainers.image.ref.name": "latest" } });
    expect(await load(tagOnly.tar)).toMatchObject({ status: 400, body: { code: "invalid_archive" } });
    const given = await load(tagOnly.tar, "?reference=acme/given:2");
    expect(given.body.items).toMatchObject([
      { reference: "given:2", digest: tagOnly.digest, tags: ["docker.io/library/named:1", "given:2"] },
    ]);
    const events = await ask<{ items: { type: string; data: object }[] }>(
      api.app,
      acme.tokens.viewer,
      "GET",
      "/v1/events",
    );
    expect(events.body.items).toContainEqual(
      expect.objectContaining({ type: "image.tagged", data: { reference: "given:2" } }),
    );
  });

  test("of several platforms takes the one for this machine", async () => {
    const config = (architecture: string) => configOf([], { architecture });
    const blobs: Record<string, Buffer> = {};
    const keep = (mediaType: string, bytes: Buffer) => {
      blobs[`blobs/sha256/${hex(bytes)}`] = bytes;
      return { mediaType, digest: sha256(bytes), size: bytes.length };
    };
    const manifests = ["s390x", "amd64", "arm64"].map((architecture) => {
      const document = {
        ...{ schemaVersion: 2, mediaType: "application/vnd.oci.image.manifest.v1+json", layers: [] },
        config: keep("application/vnd.oci.image.config.v1+json", config(architecture)),
      };
      const bytes = Buffer.from(JSON.stringify(document));
      return { ...keep(document.mediaType, bytes), platform: { os: "linux", architecture } };
    });
    const inner = { schemaVersion: 2, mediaType: "application/vnd.oci.image.index.v1+json", manifests };
    const outer = { schemaVersion: 2, manifests: [keep(inner.mediaType, Buffer.from(JSON.stringify(inner)))] };
    const { body } = await load(await tarOf({ ...blobs, "index.json": JSON.stringify(outer) }), "?reference=many:1");
    const wanted = manifests.find(
      ({ platform }) => platform.architecture === (process.arch === "x64" ? "amd64" : "arm64"),
    );
    expect(body.items).toMatchObject([{ digest: wanted?.digest }]);
  });

  test("believes nothing that the archive does not have, and keeps no part of one that is wrong", async () => {
    const secret = gzipSync(await layerOf("another project's"));
    await api.services.blobs.put([secret], { maxBytes: secret.length });
    const claimed = await layout({ layer: gunzipSync(secret) });
    const without = async (nth: number) =>
      (await layout({ instead: { [claimed.paths[nth] ?? ""]: null }, layer: gunzipSync(secret) })).tar;
    const wrong: [Uint8Array, string, RegExp][] = [
      // Its bytes are in the store; who does not have them must not get them.
      [await without(2), "invalid_archive", /lacks the blob/],
      [await without(1), "invalid_archive", /lacks the blob/],
      [await without(0), "invalid_archive", /lacks the blob/],
      [
        (await layout({ instead: { [claimed.paths[2] ?? ""]: Buffer.from("x") }, layer: gunzipSync(secret) })).tar,
        "digest_mismatch",
        /digest/,
      ],
      [await tarOf({ "index.json": "{}" }), "invalid_image", /index.json is wrong/],
      [await tarOf({ "manifest.json": "{}" }), "invalid_image", /manifest.json is wrong/],
      [await tarOf({ "manifest.json": "[]" }), "invalid_archive", /no images/],
      [
        await tarOf({ "manifest.json": '[{"Config":"../../etc/passwd","Layers":[]}]' }),
        "invalid_archive",
        /lacks "..\/..\/etc\/passwd"/,
      ],
      [await tarOf({ x: "y" }), "invalid_archive", /neither/],
      [Buffer.from("no tar at all".repeat(100)), "invalid_archive", /no whole tar/],
      [(await dockerArchive("unnamed", null)).tar, "invalid_archive", /no name/],
      [(await dockerArchive("bad", ["UPPER:1"])).tar, "invalid_reference", /UPPER/],
    ];
    const before = await ask<{ items: unknown[] }>(api.app, acme.tokens.viewer, "GET", "/v1/images");
    for (const [tar, code, detail] of wrong) {
      const { status, body } = await load(tar);
      expect([body.code, status], JSON.stringify(body)).toEqual([code, 400]);
      expect(body.detail).toMatch(detail);
    }
    expect((await ask<{ items: unknown[] }>(api.app, acme.tokens.viewer, "GET", "/v1/images")).body).toEqual(
      before.body,
    );
  });

  test("links lead nowhere but into the archive, and in no circle", async () => {
    const config = configOf([await layerOf("x")]);
    const manifest = JSON.stringify([{ Config: "config.json", RepoTags: ["loop:1"], Layers: ["l/layer.tar"] }]);
    const entries = (target: string) => [
      entry("config.json", { content: config }),
      entry("l/layer.tar", { type: "symlink", target }),
      entry("m/layer.tar", { type: "symlink", target: "../l/layer.tar" }),
      entry("manifest.json", { content: manifest }),
    ];
    for (const target of ["../m/layer.tar", "/etc/passwd", "../../../../etc/passwd"]) {
      const { body } = await load(await collect(writeTar(entries(target))));
      expect(body).toMatchObject({ code: "invalid_archive", detail: expect.stringContaining("l/layer.tar") as string });
    }
  });

  test("has a bounded number of entries, and of bytes that are read as documents", async () => {
    const links = Array.from({ length: 10_001 }, (_, n) => entry(`l${String(n)}`, { type: "symlink", target: "x" }));
    // A link takes a few bytes of a compressed archive; so does a file that takes the place of one before it.
    const same = Array.from({ length: 10_001 }, () => entry("same", { type: "hardlink", target: "x" }));
    for (const entries of [links, same]) {
      const { body } = await load(gzipSync(await collect(writeTar(entries))));
      expect(body).toMatchObject({ code: "invalid_archive", detail: expect.stringMatching(/10000 files/) as string });
    }
    const large = configOf([], { author: "x".repeat(3 << 20) });
    const archive = (count: number) =>
      tarOf({
        "c.json": large,
        "manifest.json": JSON.stringify(
          Array.from({ length: count }, () => ({ Config: "c.json", RepoTags: ["large:1"], Layers: [] })),
        ),
      });
    expect((await load(await archive(2))).status).toBe(201);
    const { body } = await load(await archive(12));
    expect(body).toMatchObject({ code: "invalid_archive", detail: expect.stringMatching(/16 MiB together/) as string });
  });

  test("refuses what is too large before it reads it", async () => {
    const { tar } = await dockerArchive("large", ["large:1"]);
    const { status, body } = await load(tar, "", acme, { "content-length": String(2 ** 40) });
    expect([status, body.code]).toEqual([413, "body_too_large"]);
  });

  test("names are moved by many at once, in whatever order their archives have them", async () => {
    const tags = Array.from({ length: 20 }, (_, i) => `moved:${String(i)}`);
    const [one, other] = [await dockerArchive("one", tags), await dockerArchive("other", tags.toReversed())];
    for (let round = 0; round < 8; round++) {
      const loaded = await Promise.all([load(one.tar), load(other.tar), load(one.tar), load(other.tar)]);
      expect(loaded.map(({ status }) => status)).toEqual([201, 201, 201, 201]);
    }
  });

  test("is done once for one Idempotency-Key, and only by who may", async () => {
    const { tar } = await dockerArchive("once", ["once:1"]);
    const key = { "idempotency-key": "load-1" };
    const [first, second] = [await load(tar, "", acme, key), await load(tar, "", acme, key)];
    expect(second.body).toEqual(first.body);
    expect(second.headers.get("idempotency-replayed")).toBe("true");
    const viewer = await load(tar, "", { ...acme, tokens: { ...acme.tokens, deployer: acme.tokens.viewer } });
    expect(viewer.status).toBe(403);
  });
});

describe("saving", () => {
  test("gives what can be loaded again, here and by others, with the names that were asked for", async () => {
    await load((await dockerArchive("saved", ["saved:1", "saved:2"])).tar);
    const laid = await layout({ layer: await layerOf("laid"), annotations: { "io.containerd.image.name": "laid:1" } });
    await load(laid.tar);
    const { status, bytes } = await save(["saved:1", "saved:2", "laid:1"]);
    expect(status).toBe(200);
    const files = await filesOf(bytes);
    const saved = JSON.parse(files.get("manifest.json")?.toString() ?? "") as {
      Config: string;
      RepoTags: string[];
      Layers: string[];
    }[];
    expect(saved.map(({ RepoTags }) => RepoTags)).toEqual([["saved:1", "saved:2"], ["laid:1"]]);
    for (const { Config, Layers } of saved)
      for (const path of [Config, ...Layers]) expect([...files.keys()]).toContain(path);
    for (const [path, content] of files) {
      const [, digest] = /^blobs\/sha256\/(.*)$/.exec(path) ?? [];
      if (digest !== undefined) expect(hex(content)).toBe(digest);
    }
    const again = await load(bytes, "", other);
    expect(again.body.items.map(({ reference }) => reference).sort()).toEqual(["laid:1", "saved:1"]);
    expect(again.body.items.map(({ digest }) => digest)).toContain(laid.digest);
    expect((await save(["saved:1", "saved:2", "laid:1"], other)).bytes.equals(bytes)).toBe(true);
    // By digest it has no name, and is given one.
    const nameless = await save([laid.digest]);
    expect((await load(nameless.bytes, "", other)).body.code).toBe("invalid_archive");
    expect((await load(nameless.bytes, "?reference=back:1", other)).body.items).toMatchObject([
      { digest: laid.digest },
    ]);
  });

  test("knows the project's images only, and what it is asked for", async () => {
    await load((await dockerArchive("mine", ["mine:1"])).tar);
    expect((await save(["mine:1"], other)).status).toBe(404);
    expect((await save(["none:1"])).status).toBe(404);
    expect((await save([])).status).toBe(400);
    expect((await save(["NOT A NAME"])).status).toBe(400);
  });

  test("says so before it begins when a blob is gone", async () => {
    const { body } = await load((await dockerArchive("gone", ["gone:1"])).tar);
    await (api.services.blobs as ClusterStore).delete(body.items[0]?.layers[0]?.digest ?? "");
    const { status, bytes } = await save(["gone:1"]);
    expect([status, (JSON.parse(bytes.toString()) as Problem).code]).toEqual([503, "blob_store_error"]);
  });
});
