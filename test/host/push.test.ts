import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, beforeAll, beforeEach, describe, expect, inject, test } from "vitest";
import type { Image, Layer } from "../../src/core/image.ts";
import { parsePushDestination } from "../../src/core/reference.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { writeImage } from "../../src/image/manifest.ts";
import { pushImage } from "../../src/image/push.ts";
import { Registry } from "../../src/image/registry.ts";
import type { RegistryAuth } from "../../src/image/registry-auth.ts";
import { writeTar } from "../../src/image/tar-write.ts";
import type { TransferCounts } from "../../src/image/transfer.ts";
import { DrivenHost } from "../support/driven-host.ts";
import { collect, entry, layerBlob } from "../support/image.ts";
import { type LoggedRequest, startRegistry, type TestRegistry } from "../support/registry.ts";

// Publishing to Debian's docker-registry; what has left is read from the registry's own access log.

// bcrypt of "secret" for the user "ada".
const htpasswd = "ada:$2y$05$xDH6fgTuQGlOEeUn4wKJo.BuYN9mwa.AA9uhSdmGRAlPxsLLpNVkK\n";

/** The digests of the blobs that were uploaded, in no order. */
function uploaded(requests: readonly LoggedRequest[]): string[] {
  return requests
    .filter(({ method, target, status }) => method === "PUT" && target.includes("/blobs/uploads/") && status === 201)
    .map(({ target }) => new URL(target, "http://x").searchParams.get("digest") ?? "")
    .sort();
}

describe("the client", () => {
  let directory: string;
  let blobs: FileBlobs;
  let remote: TestRegistry;
  let registry: Registry;

  beforeAll(async () => {
    directory = mkdtempSync(join(tmpdir(), "berth-push-"));
    blobs = new FileBlobs(directory);
    remote = await startRegistry(htpasswd);
    registry = new Registry({ mirrors: new Map(), insecure: new Set([remote.host]), allow: [] });
  });
  afterAll(async () => {
    registry.close();
    await remote.stop();
    rmSync(directory, { recursive: true, force: true });
  });

  interface Stored {
    image: Image;
    manifest: string;
    configDigest: string;
    layers: Layer[];
  }

  /** An image in the blob store with a layer for each text. */
  async function store(...texts: string[]): Promise<Stored> {
    const layers = await Promise.all(texts.map((text) => layerBlob([entry("file", { content: text })])));
    const written = writeImage(
      { architecture: "amd64", os: "linux", config: { Cmd: texts } },
      layers.map(({ layer }) => layer),
    );
    for (const bytes of [...layers.map(({ blob }) => blob), written.config, written.manifest]) {
      await blobs.put(Readable.from([bytes]), { maxBytes: bytes.length });
    }
    const { image, manifest, configDigest } = written;
    return { image, manifest: Buffer.from(manifest).toString(), configDigest, layers: image.layers };
  }

  const ada = { username: "ada", password: "secret" };
  const push = (
    { image }: Stored,
    destination: string,
    more: { auth?: RegistryAuth | null; sources?: [string, string][] } = {},
  ): Promise<TransferCounts> =>
    pushImage({
      image,
      destination: parsePushDestination(`${remote.host}/${destination}`),
      auth: more.auth === undefined ? ada : more.auth,
      registry,
      blobs,
      signal: new AbortController().signal,
      sources: new Map(more.sources ?? []),
    });

  let seen = 0;
  beforeEach(async () => {
    seen = (await remote.requests()).length;
  });
  const requests = async (): Promise<LoggedRequest[]> => (await remote.requests()).slice(seen);

  test("sends an image whole, its manifest byte for byte, and after a change only what is new", async () => {
    const one = await store("base", "one");
    const two = await store("base", "two");
    const size = ({ layers }: Stored, index: number): number => layers[index]?.sizeBytes ?? 0;
    expect(await push(one, "team/web:1")).toEqual({
      layersTransferred: 2,
      layersSkipped: 0,
      bytesTransferred: size(one, 0) + size(one, 1),
    });
    const response = await fetch(`http://${remote.host}/v2/team/web/manifests/1`, {
      headers: { authorization: `Basic ${btoa("ada:secret")}`, accept: one.image.mediaType },
    });
    expect(await response.text()).toBe(one.manifest);
    seen = (await remote.requests()).length;
    expect(await push(two, "team/web:2")).toEqual({
      layersTransferred: 1,
      layersSkipped: 1,
      bytesTransferred: size(two, 1),
    });
    expect(uploaded(await requests())).toEqual([two.configDigest, two.layers[1]?.digest].sort());
    seen = (await remote.requests()).length;
    expect(await push(two, "team/web:2")).toEqual({ layersTransferred: 0, layersSkipped: 2, bytesTransferred: 0 });
    expect(uploaded(await requests())).toEqual([]);
  });

  test("mounts layers that another repository has; a hint that is wrong costs an upload", async () => {
    const base = await store("shared");
    await push(base, "team/base:1");
    const app = await store("shared", "app");
    const [shared, own] = app.layers.map(({ digest }) => digest);
    seen = (await remote.requests()).length;
    const sources: [string, string][] = [
      [shared ?? "", "team/base"],
      [own ?? "", "team/none"],
    ];
    expect(await push(app, "team/mounted:1", { sources })).toMatchObject({ layersTransferred: 1, layersSkipped: 1 });
    const logged = await requests();
    expect(uploaded(logged)).toEqual([app.configDigest, own].sort());
    const mounts = logged.filter(({ method, target }) => method === "POST" && target.includes("mount="));
    expect(mounts.map(({ status }) => status).sort()).toEqual([201, 202]);
  });

  test("wrong credentials are named as what is wrong, never repeated, and nothing is sent", async () => {
    const image = await store("private");
    for (const auth of [{ username: "ada", password: "hunter2" }, null]) {
      const error: unknown = await push(image, "team/private:1", { auth }).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({ code: "registry_denied", retryable: false });
      const { message } = error as Error;
      expect(message).toMatch(auth === null ? /wants a user/ : /user name or password is wrong/);
      expect(message).not.toContain("hunter2");
    }
    expect((await requests()).every(({ status }) => status === 401)).toBe(true);
  });
});

describe("a push job", () => {
  let registry: TestRegistry;
  let host: DrivenHost;

  beforeAll(async () => {
    registry = await startRegistry(htpasswd);
    host = await DrivenHost.create(inject("postgresSocketDir"), { BERTH_INSECURE_REGISTRIES: registry.host });
    await host.start();
  });
  afterAll(async () => {
    await host.destroy();
    await registry.stop();
  });

  interface Job {
    id: string;
    status: string;
    result: Record<string, unknown> | null;
    error: { code: string; message: string } | null;
  }

  async function build(tag: string, page: string): Promise<void> {
    const files = [
      entry("Dockerfile", { content: "FROM scratch\nCOPY large /\nCOPY page /\n" }),
      entry("large", { content: "0".repeat(100_000) }),
      entry("page", { content: page }),
    ];
    const response = await host.api.app.request(`/v1/builds?tag=${tag}`, {
      method: "POST",
      headers: {
        authorization: `Bearer ${host.project.tokens.deployer}`,
        "content-type": "application/x-tar",
        prefer: "wait=60",
      },
      body: await collect(writeTar(files)),
    });
    expect(await response.json()).toMatchObject({ status: "succeeded" });
  }

  const push = async (reference: string, destination: string, password = "secret"): Promise<Job> => {
    const body = {
      reference,
      destination: `${registry.host}/${destination}`,
      auth: { username: "ada", password },
    };
    return (await host.ask<Job>("POST", "/v1/images/push", body, { prefer: "wait=60" })).body;
  };

  test("publishes a built image; after a one-line change one layer leaves; a second repository gets it by mounts", async () => {
    await build("web:1", "one\n");
    expect(await push("web:1", "team/web:1")).toMatchObject({
      status: "succeeded",
      result: { layersTransferred: 2, layersSkipped: 0, destination: `${registry.host}/team/web:1` },
    });
    await build("web:2", "two\n");
    const before = (await registry.requests()).length;
    const changed = await push("web:2", "team/web:2");
    expect(changed).toMatchObject({ status: "succeeded", result: { layersTransferred: 1, layersSkipped: 1 } });
    const { body } = await host.ask<{ layers: Layer[] }>("GET", "/v1/images/web%3A2");
    expect(changed.result?.["bytesTransferred"]).toBe(body.layers[1]?.sizeBytes);
    const left = uploaded((await registry.requests()).slice(before));
    // The layer of the page and the image's config.
    expect(left).toHaveLength(2);
    expect(left).toContain(body.layers[1]?.digest);
    expect(left).not.toContain(body.layers[0]?.digest);
    expect(await push("web:2", "team/copy:2")).toMatchObject({
      status: "succeeded",
      result: { layersTransferred: 0, layersSkipped: 2, bytesTransferred: 0 },
    });
  });

  test("an image that was pulled goes to another repository of its registry without a byte", async () => {
    const other = await host.api.project("other");
    const image = `${registry.host}/team/web:1`;
    const auth = { username: "ada", password: "secret" };
    const ask = async (path: string, body: object): Promise<Job> =>
      (await host.ask<Job>("POST", path, { reference: image, auth, ...body }, { prefer: "wait=60" }, other)).body;
    expect(await ask("/v1/images/pull", {})).toMatchObject({ status: "succeeded" });
    expect(await ask("/v1/images/push", { destination: `${registry.host}/other/web:1` })).toMatchObject({
      status: "succeeded",
      result: { layersTransferred: 0, layersSkipped: 2, bytesTransferred: 0 },
    });
  });

  test("with wrong credentials it fails with words that do not repeat them, and keeps none", async () => {
    await build("web:3", "three\n");
    const job = await push("web:3", "team/web:3", "hunter2");
    expect(job).toMatchObject({ status: "failed", error: { code: "registry_denied" } });
    expect(job.error?.message).toContain("password is wrong");
    expect(JSON.stringify(job)).not.toContain("hunter2");
    const rows = await host.api.database.owner`select payload from jobs where id = ${job.id} and not payload ? 'auth'`;
    expect(rows).toHaveLength(1);
  });
});
