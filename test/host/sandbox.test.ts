import { afterAll, beforeAll, expect, test } from "vitest";
import { TestHost } from "../support/sandboxes.ts";

let host: TestHost;
beforeAll(async () => {
  host = await TestHost.create();
});
afterAll(() => host.destroy());

test("a process runs in its image and its exit code is kept", async () => {
  const { out, end } = await host.shell("echo hello; echo oops >&2; exit 3");
  expect(out).toBe("hello\noops\n");
  expect(end).toMatchObject({ state: "exited", exitCode: 3, oomKilled: false });
});
