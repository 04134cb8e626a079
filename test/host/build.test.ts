import { afterAll, beforeAll, expect, test } from "vitest";
import { type BuildWorker, busybox, startBuildWorker } from "../support/builds.ts";

let worker: BuildWorker;

beforeAll(async () => {
  worker = await startBuildWorker();
  const base = await worker.build(
    "base",
    ["FROM scratch", "COPY busybox /bin/busybox", 'RUN ["/bin/busybox", "--install", "-s", "/bin"]', "COPY etc /etc"],
    {
      busybox: busybox(),
      "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n",
      "etc/group": "app:x:1000:\n",
    },
  );
  expect(base.error).toBeNull();
  expect(base.files["/bin/sh"]).toBe("777 0:0 -> /bin/busybox");
});
afterAll(() => worker.stop());

test("a base of nothing but busybox is what was asked for", async () => {
  const answer = await worker.build("plain", ["FROM base", "RUN echo hello; echo oops >&2"]);
  expect(answer.error).toBeNull();
  expect(answer.log).toEqual(
    expect.arrayContaining(["#2 [stage-0 2/2] RUN echo hello; echo oops >&2", "stdout: hello", "stderr: oops"]),
  );
});
