import { expect, test } from "vitest";
import { RawBodies } from "../../src/routes/raw-body.ts";

const limits = { maxBytes: 10, maxBytesAtOnce: 15, maxMs: 200 };
const post = (body: string | ReadableStream<Uint8Array> | null) =>
  new Request("http://berth.example/", { method: "POST", body, duplex: "half" });

/** A body that sends these parts and, unless told, stays open. */
function open(parts: readonly string[], end = false) {
  let cancelled = false;
  const stream = new ReadableStream<Uint8Array>({
    start(controller) {
      for (const part of parts) controller.enqueue(new TextEncoder().encode(part));
      if (end) controller.close();
    },
    cancel() {
      cancelled = true;
    },
  });
  return { request: post(stream), cancelled: () => cancelled };
}

test("a body is read as it came", async () => {
  const bodies = new RawBodies(limits);
  expect((await bodies.read(post(null))).length).toBe(0);
  expect((await bodies.read(open(["\xe9", "\0b"], true).request)).toString()).toBe("\xe9\0b");
});

test("one that is too large is read no further", async () => {
  const { request, cancelled } = open(["12345", "67890", "1"]);
  await expect(new RawBodies(limits).read(request)).rejects.toMatchObject({ code: "body_too_large" });
  expect(cancelled()).toBe(true);
});

test("one that does not end is given up, and its bytes are free again", async () => {
  const bodies = new RawBodies(limits);
  const slow = open(["1234567890"]);
  const waiting = expect(bodies.read(slow.request)).rejects.toMatchObject({
    code: "invalid_request",
    message: "The body has to come within 0.2 seconds.",
  });
  await expect(bodies.read(post("123456"))).rejects.toMatchObject({ code: "too_many_requests", retryable: true });
  expect((await bodies.read(post("12345"))).toString()).toBe("12345");
  await waiting;
  expect(slow.cancelled()).toBe(true);
  expect((await bodies.read(post("1234567890"))).length).toBe(10);
});
