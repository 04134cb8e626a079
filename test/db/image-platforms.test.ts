import { afterAll, beforeAll, expect, inject, test } from "vitest";
import { BerthError } from "../../src/core/errors.ts";
import { newId } from "../../src/core/ids.ts";
import { drizzle } from "../../src/db/drizzle.ts";
import * as schema from "../../src/db/schema.ts";
import { ensureImage } from "../../src/engine/images.ts";
import type { Services } from "../../src/engine/services.ts";
import { createDatabase, type TestDatabase } from "../support/postgres.ts";

// Two images that the project has, its own and one of a registry that is out of reach, both made for amd64.
let database: TestDatabase;
let services: Services;
const projectId = newId("project");

beforeAll(async () => {
  database = await createDatabase(inject("postgresSocketDir"));
  const { owner } = database;
  await owner`insert into projects (id, name) values (${projectId}, 'p')`;
  const config = JSON.stringify({ architecture: "amd64", os: "linux", rootfs: { type: "layers", diff_ids: [] } });
  await owner`
    insert into images (project_id, digest, media_type, manifest, config, layers, size_bytes)
    values (${projectId}, 'sha256:a', 'm', '{}', ${config}::text::jsonb, '[]', 1)`;
  for (const repository of ["web", "docker.io/library/busybox"]) {
    await owner`
      insert into tags (project_id, repository, tag, digest) values (${projectId}, ${repository}, '1', 'sha256:a')`;
  }
  const registry = {
    resolve: () => Promise.reject(new BerthError("registry_unreachable", "The registry is out of reach.")),
  };
  services = { connection: { db: drizzle(owner, { schema }) }, registry } as unknown as Services;
});
afterAll(() => database.drop());

const ensure = async (reference: string, platform?: string) => {
  const wish = { pull: "missing", signal: new AbortController().signal, held: () => Promise.resolve(true) } as const;
  const { image } = await ensureImage(services, projectId, reference, {
    ...wish,
    ...(platform === undefined ? {} : { platform }),
  });
  return image.digest;
};

test("an image that is there is used for its own platform, and where none is asked for", async () => {
  for (const reference of ["web:1", "busybox:1"]) {
    expect(await ensure(reference)).toBe("sha256:a");
    expect(await ensure(reference, "linux/amd64")).toBe("sha256:a");
  }
});

test("for another platform its registry is asked, and a project's own image is refused", async () => {
  await expect(ensure("busybox:1", "linux/arm64")).rejects.toMatchObject({ code: "registry_unreachable" });
  await expect(ensure("web:1", "linux/arm64")).rejects.toMatchObject({
    code: "image_not_found",
    message: "web:1 is not made for linux/arm64, only for linux/amd64.",
  });
});
