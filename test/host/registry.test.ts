import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { parseReference } from "../../src/core/reference.ts";
import { FileBlobs } from "../../src/image/file-blobs.ts";
import { LayerStore } from "../../src/image/layers.ts";
import { mediaTypes } from "../../src/image/manifest.ts";
import { type PulledImage, pullImage } from "../../src/image/pull.ts";
import { Registry, type RegistryOptions } from "../../src/image/registry.ts";
import type { RegistryAuth } from "../../src/image/registry-auth.ts";
import { entry, layerBlob, pushImage, pushManifest } from "../support/image.ts";
import { startRegistry, type TestRegistry } from "../support/registry.ts";

// bcrypt of "secret" for the user "ada".
const htpasswd = "ada:$2y$05$xDH6fgTuQGlOEeUn4wKJo.BuYN9mwa.AA9uhSdmGRAlPxsLLpNVkK\n";

describe("pulling from Debian's docker-registry", () => {
  let remote: TestRegistry;
  let directory: string;
  let blobs: FileBlobs;
  let layers: LayerStore;
  const clients: Registry[] = [];

  beforeAll(async () => {
    remote = await startRegistry();
  });
  afterAll(async () => {
    await remote.stop();
  });
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "berth-pull-"));
    blobs = new FileBlobs(join(directory, "blobs"));
    layers = new LayerStore(join(directory, "layers"), blobs);
  });
  afterEach(async () => {
    for (const client of clients.splice(0)) client.close();
    await rm(directory, { recursive: true, force: true });
  });

  const pull = async (
    text: string,
    more: Partial<RegistryOptions> & { auth?: RegistryAuth; platform?: string; mayReuse?: () => boolean } = {},
  ): Promise<PulledImage> => {
    const registry = new Registry({
      mirrors: new Map(),
      insecure: new Set([remote.host]),
      allow: [],
      retry: { attempts: 2, firstDelayMs: 1 },
      ...more,
    });
    clients.push(registry);
    const reference = parseReference(text);
    return pullImage({
      reference: { ...reference, registry: reference.registry ?? "" },
      platform: more.platform ?? "linux/amd64",
      auth: more.auth ?? null,
      registry,
      blobs,
      layers,
      signal: new AbortController().signal,
      ...(more.mayReuse === undefined ? {} : { mayReuse: more.mayReuse }),
    });
  };

  test("moves only the layers that are missing, and stores what it moved", async () => {
    const busybox = await layerBlob([
      entry("bin", { type: "directory" }),
      entry("bin/busybox", { mode: 0o755, content: await readFile("/bin/busybox") }),
    ]);
    const one = await layerBlob([entry("etc/motd", { content: "one\n" })]);
    const two = await layerBlob([entry("etc/motd", { content: "two\n" })]);
    const first = await pushImage(remote.host, "app", "1", [busybox, one], { config: { Cmd: ["/bin/busybox"] } });
    await pushImage(remote.host, "app", "2", [busybox, two]);
    const pulled = await pull(`${remote.host}/app:1`);
    expect(pulled.image).toEqual(first);
    expect(pulled).toMatchObject({
      layersTransferred: 2,
      layersSkipped: 0,
      bytesTransferred: busybox.blob.length + one.blob.length,
    });
    expect(await blobs.size(first.digest)).toBeGreaterThan(0);
    expect(await layers.has(busybox.layer)).toBe(true);
    expect(await pull(`${remote.host}/app:2`)).toMatchObject({
      layersTransferred: 1,
      layersSkipped: 1,
      bytesTransferred: two.blob.length,
    });
    expect(await pull(`${remote.host}/app@${first.digest}`)).toMatchObject({ layersTransferred: 0, layersSkipped: 2 });
  });

  test("transfers a layer that the host holds but the project may not take unseen", async () => {
    const layer = await layerBlob([entry("secret", { content: "of another project" })]);
    await pushImage(remote.host, "other", "1", [layer]);
    await pull(`${remote.host}/other:1`);
    expect(await pull(`${remote.host}/other:1`, { mayReuse: () => false })).toMatchObject({
      layersTransferred: 1,
      bytesTransferred: layer.blob.length,
    });
  });

  test("takes the platform asked for out of an index", async () => {
    const images = [];
    for (const architecture of ["amd64", "arm64"]) {
      const layer = await layerBlob([entry("arch", { content: architecture })]);
      images.push(await pushImage(remote.host, "multi", architecture, [layer], { architecture }));
    }
    const index = {
      schemaVersion: 2,
      mediaType: mediaTypes.ociIndex,
      manifests: await Promise.all(
        images.map(async (image) => ({
          mediaType: image.mediaType,
          digest: image.digest,
          size: (await (await fetch(`http://${remote.host}/v2/multi/manifests/${image.digest}`)).arrayBuffer())
            .byteLength,
          platform: { os: "linux", architecture: image.config.architecture },
        })),
      ),
    };
    await pushManifest(remote.host, "multi", "latest", Buffer.from(JSON.stringify(index)), mediaTypes.ociIndex);
    expect((await pull(`${remote.host}/multi`, { platform: "linux/arm64" })).image.digest).toBe(images[1]?.digest);
    await expect(pull(`${remote.host}/multi`, { platform: "linux/s390x" })).rejects.toMatchObject({
      code: "image_not_found",
      message: `${remote.host}/multi:latest is not made for linux/s390x, only for linux/amd64, linux/arm64.`,
    });
  });

  test("asks a mirror first, and says what is missing where", async () => {
    const layer = await layerBlob([entry("x", { content: "x" })]);
    await pushImage(remote.host, "library/tiny", "latest", [layer]);
    const mirrors = new Map([["docker.io", `http://${remote.host}`]]);
    expect((await pull("docker.io/tiny", { mirrors })).image.layers).toEqual([layer.layer]);
    await expect(pull(`${remote.host}/none:1`)).rejects.toMatchObject({ code: "image_not_found" });
  });

  test("refuses a private address that the operator did not open, and succeeds once it is allowed", async () => {
    const layer = await layerBlob([entry("y", { content: "y" })]);
    await pushImage(remote.host, "inner", "1", [layer]);
    await expect(pull(`${remote.host}/inner:1`, { insecure: new Set() })).rejects.toMatchObject({
      code: "address_refused",
    });
    // As a mirror of its own name it is trusted: the same registry, the same probe.
    const mirrors = new Map([[remote.host, `http://${remote.host}`]]);
    expect(await pull(`${remote.host}/inner:1`, { insecure: new Set(), mirrors })).toMatchObject({
      layersTransferred: 1,
    });
  });

  test("an unreachable registry, and a wrong diff id, leave nothing", async () => {
    await expect(pull("127.0.0.1:1/x:1", { insecure: new Set(["127.0.0.1:1"]) })).rejects.toMatchObject({
      code: "registry_unreachable",
      retryable: true,
    });
    const good = await layerBlob([entry("z", { content: "z" })]);
    const other = await layerBlob([entry("z", { content: "other" })]);
    await pushImage(remote.host, "liar", "1", [{ ...good, layer: { ...good.layer, diffId: other.layer.diffId } }]);
    await expect(pull(`${remote.host}/liar:1`)).rejects.toMatchObject({ code: "digest_mismatch" });
    expect(await readdir(join(directory, "layers"))).toEqual([]);
    expect(await readdir(join(directory, "blobs", "tmp"))).toEqual([]);
    expect(await readdir(join(directory, "blobs", "sha256"))).toEqual([]);
  });

  test("a layer held under another diff id can't be claimed by naming it", async () => {
    const victim = await layerBlob([entry("secret", { content: "victim" })]);
    const own = await layerBlob([entry("own", { content: "own" })]);
    await pushImage(remote.host, "victim", "1", [victim]);
    await pushImage(remote.host, "thief", "1", [own]);
    await pull(`${remote.host}/victim:1`);
    await pull(`${remote.host}/thief:1`);
    await pushImage(remote.host, "thief", "2", [
      { blob: own.blob, layer: { ...own.layer, diffId: victim.layer.diffId } },
    ]);
    await expect(pull(`${remote.host}/thief:2`)).rejects.toMatchObject({ code: "digest_mismatch" });
  });

  test("a registry with users: the right one is let in, others are told so", async () => {
    const closed = await startRegistry(htpasswd);
    try {
      const authorization = `Basic ${Buffer.from("ada:secret").toString("base64")}`;
      const layer = await layerBlob([entry("private", { content: "p" })]);
      await pushImage(closed.host, "private", "1", [layer], { authorization });
      const insecure = new Set([closed.host]);
      const auth = { username: "ada", password: "secret" };
      expect(await pull(`${closed.host}/private:1`, { insecure, auth })).toMatchObject({ layersTransferred: 1 });
      for (const wrong of [undefined, { username: "ada", password: "guess" }]) {
        const tried = pull(`${closed.host}/private:1`, { insecure, ...(wrong === undefined ? {} : { auth: wrong }) });
        await expect(tried).rejects.toMatchObject({ code: "registry_denied" });
      }
    } finally {
      await closed.stop();
    }
  });
});
