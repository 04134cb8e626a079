import { execFileSync } from "node:child_process";
import {
  closeSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  statfsSync,
  statSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { Disks } from "../../src/isolation/apply/disk.ts";
import { unmount } from "../../src/isolation/apply/mount-api.ts";
import { mountsBelow } from "../../src/isolation/apply/mount-table.ts";
import { Owned } from "../support/ownership.ts";

const MiB = 1024 * 1024;
const idBase = 900_000_000;
let owned: Owned;
let directory: string;
let disks: Disks;
let target: string;

beforeEach(() => {
  owned = Owned.directory("berth-disks-");
  ({ directory } = owned.footprint);
  target = join(directory, "mounted");
  mkdirSync(join(directory, "disks"));
  mkdirSync(target);
  disks = new Disks(join(directory, "disks"));
});
afterEach(async () => {
  for (const { path } of mountsBelow(directory).toReversed()) unmount(path);
  await owned.remove();
});

async function mounted(size = 16 * MiB): Promise<void> {
  await disks.create(3, size);
  await disks.mount(3, target, idBase);
}

test.each([16 * MiB, 1024 * MiB, 100 * 1024 * MiB])(
  "a disk of %i bytes takes little until it is used",
  async (size) => {
    await mounted(size);
    const { blocks, bsize, files } = statfsSync(target);
    expect(blocks * bsize).toBeGreaterThan(size * 0.95);
    expect(files).toBe(size / 8192);
    expect(statSync(disks.path(3)).blocks * 512).toBeLessThan(MiB);
    expect(statSync(join(target, "upper"))).toMatchObject({ uid: idBase, gid: idBase });
    expect(statSync(join(target, "work")).uid).toBe(idBase);
    expect(disks.slots()).toEqual([3]);
  },
);

test("bytes end at its size, and the host's are untouched", async () => {
  await mounted();
  const fd = openSync(join(target, "upper/fill"), "w");
  expect(() => {
    for (let i = 0; i < 17; i++) writeSync(fd, Buffer.alloc(MiB, 1));
  }).toThrow(/ENOSPC/);
  closeSync(fd);
});

test("inodes end as well", async () => {
  await mounted();
  expect(() => {
    for (let i = 0; i < 2049; i++) writeFileSync(join(target, `upper/${i}`), "");
  }).toThrow(/ENOSPC/);
});

test("set-user-id files work there, devices don't", async () => {
  await mounted();
  expect(mountsBelow(target)).toMatchObject([{ type: "ext4" }]);
  const options = execFileSync("findmnt", ["-no", "OPTIONS", target], { encoding: "utf8" });
  expect(options).toContain("nodev");
  expect(options).not.toContain("nosuid");
});

test("what was written is there when it is mounted again", async () => {
  await mounted();
  writeFileSync(join(target, "upper/kept"), "yes");
  await disks.unmount(target);
  await disks.unmount(target);
  await expect.poll(() => disks.isAttached(3), { timeout: 20_000 }).toBe(false);
  await disks.mount(3, target, idBase);
  expect(readFileSync(join(target, "upper/kept"), "utf8")).toBe("yes");
});

test("a disk that a crash of the host left unclean is checked and mounted", async () => {
  await mounted();
  writeFileSync(join(target, "upper/kept"), "yes");
  execFileSync("sync", ["-f", target]);
  const crashed = readFileSync(disks.path(3));
  await disks.unmount(target);
  await expect.poll(() => disks.isAttached(3), { timeout: 20_000 }).toBe(false);
  writeFileSync(disks.path(3), crashed);
  await disks.mount(3, target, idBase);
  expect(readFileSync(join(target, "upper/kept"), "utf8")).toBe("yes");
});

test("a disk that is in use is not mounted twice", async () => {
  await mounted();
  const other = join(directory, "other");
  mkdirSync(other);
  await expect(disks.mount(3, other, idBase)).rejects.toMatchObject({ code: "start_failed" });
});

test("a disk beyond repair is an error, and can be replaced", async () => {
  await disks.create(3, 16 * MiB);
  writeFileSync(disks.path(3), Buffer.alloc(16 * MiB, 7));
  await expect(disks.mount(3, target, idBase)).rejects.toMatchObject({ code: "start_failed" });
  await mounted();
  expect(readdirSync(target).sort()).toEqual(["lost+found", "upper", "work"]);
});

test("removing is idempotent, and the next disk of the slot is empty", async () => {
  await mounted();
  writeFileSync(join(target, "upper/secret"), "of the one before");
  await disks.unmount(target);
  await disks.remove(3);
  await disks.remove(3);
  expect(disks.slots()).toEqual([]);
  await mounted();
  expect(readdirSync(join(target, "upper"))).toEqual([]);
  await disks.unmount(target);
  expect(readFileSync(disks.path(3)).includes("of the one before")).toBe(false);
});

test("the making of a template leaves nothing behind", async () => {
  await Promise.all([0, 1, 2].map((slot) => disks.create(slot, 20 * MiB)));
  writeFileSync(join(directory, "disks/template-1"), "of a worker that was killed");
  new Disks(join(directory, "disks"));
  expect(readdirSync(join(directory, "disks")).sort()).toEqual(["0.img", "1.img", "2.img"]);
});
