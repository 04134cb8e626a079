import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { PortMapping } from "../../src/core/port.ts";
import { datagram, get, host, outside, TestNetwork } from "../support/network.ts";

let net: TestNetwork;

beforeEach(async () => {
  net = await TestNetwork.create();
  await net.container(0, "prj_a");
  await net.serve(0, "zero", "80");
});
afterEach(async () => {
  await net.end();
});

function mapping(more: Partial<PortMapping> = {}): PortMapping {
  return { id: "prt_x", containerPort: 80, hostPort: 8000, protocol: "tcp", hostAddress: null, ...more };
}

const pageFrom = async (where: "host" | "outside", address: string, port = 8000): Promise<string> =>
  (await net[where].run(...get(address, port))).out;

describe("a published port", () => {
  test("answers from everywhere, and shows the client's address", async () => {
    await net.worker.call("publish", mapping(), 0);
    expect(await pageFrom("outside", host.public4)).toBe("zero");
    expect(await pageFrom("outside", host.public6)).toBe("zero");
    expect(await pageFrom("host", host.public4)).toBe("zero");
    expect(await pageFrom("host", "127.0.0.1")).toBe("zero");
    expect(await pageFrom("host", "::1")).toBe("zero");
    const peer = await net.outside.run(...get(host.public4, 8000, "cgi-bin/peer"));
    expect(peer.out).toContain(outside.public4);
  });

  test("is reached by containers, the container itself and other projects' included", async () => {
    await net.container(1, "prj_b");
    await net.worker.call("publish", mapping(), 0);
    for (const slot of [0, 1]) {
      expect((await net.inside(slot, ...get(host.public4, 8000))).out).toBe("zero");
      expect((await net.inside(slot, ...get(host.public6, 8000))).out).toBe("zero");
    }
  });

  test("on one address answers there only, and leaves the others free", async () => {
    await net.container(1, "prj_b");
    await net.serve(1, "one", "80");
    await net.worker.call("publish", mapping({ hostAddress: "127.0.0.1" }), 0);
    await net.worker.call("publish", mapping({ hostAddress: host.public6 }), 1);
    expect(await pageFrom("host", "127.0.0.1")).toBe("zero");
    expect(await pageFrom("outside", host.public6)).toBe("one");
    expect((await net.outside.run(...get(host.public4, 8000))).code).not.toBe(0);
  });

  test("is taken away: nothing answers, nothing is held, any number of times", async () => {
    await net.worker.call("publish", mapping(), 0);
    await net.worker.call("publish", mapping(), 0);
    for (let time = 0; time < 2; time++) await net.worker.call("unpublish", mapping());
    expect((await net.outside.run(...get(host.public4, 8000))).code).not.toBe(0);
    expect((await net.state()).ports).toEqual([]);
    await net.serve("host", "other", "8000");
    expect(await pageFrom("outside", host.public4)).toBe("other");
  });

  test("that a process of the host has is a conflict that names the process, and changes nothing", async () => {
    await net.serve("host", "other", "127.0.0.1:8000");
    await expect(net.worker.call("publish", mapping(), 0)).rejects.toMatchObject({
      code: "host_port_in_use",
      message: expect.stringMatching(/^Host port 8000\/tcp is used by (busybox|httpd) \(pid \d+\)\.$/) as string,
    });
    expect((await net.state()).ports).toEqual([]);
    expect(await pageFrom("host", "127.0.0.1")).toBe("other");
  });

  test("on an address that the host does not have is refused", async () => {
    const call = net.worker.call("publish", mapping({ hostAddress: "203.0.113.77" }), 0);
    await expect(call).rejects.toMatchObject({ code: "invalid_request" });
  });

  test("can't be taken by a process of the host", async () => {
    await net.worker.call("publish", mapping(), 0);
    await net.worker.call("publish", mapping({ protocol: "udp", hostPort: 8001 }), 0);
    expect((await net.host.run("timeout", "2", "busybox", "nc", "-l", "-p", "8000")).out).toMatch(/Address .* in use/);
    expect((await net.host.run(...datagram(8001, "127.0.0.1", 9))).out).toMatch(/EADDRINUSE/);
  });

  test("goes on answering while the worker is dead, and is taken over by the next", async () => {
    await net.worker.call("publish", mapping(), 0);
    const before = await net.state();
    // The sandbox lives on in its processes: here the server.
    await net.worker.kill();
    expect(await pageFrom("outside", host.public4)).toBe("zero");
    expect(await pageFrom("host", "127.0.0.1")).toBe("zero");
    await net.startWorker();
    expect(await net.state()).toEqual(before);
    await net.worker.call("publish", mapping(), 0);
    expect(await pageFrom("host", "::1")).toBe("zero");
    await net.worker.call("unpublish", mapping());
    expect((await net.outside.run(...get(host.public4, 8000))).code).not.toBe(0);
  });
});

describe("a port that is led to another container", () => {
  // Connects, asks and reads, one connection after the other; prints what answered and how often, and what went wrong.
  const program = `
    const { connect } = require("node:net");
    const seen = {};
    const once = () => new Promise((done) => {
      let text = "";
      const socket = connect(8000, "${host.public4}", () => socket.end("GET / HTTP/1.0\\r\\n\\r\\n"));
      socket.on("data", (part) => (text += part));
      socket.setTimeout(1500, () => socket.destroy(Object.assign(new Error(), { code: "late" })));
      socket.on("error", (error) => (text = "x " + error.code));
      socket.on("close", () => done(text.slice(text.lastIndexOf("\\n") + 1)));
    });
    (async () => {
      for (const end = Date.now() + 3000; Date.now() < end; ) {
        const page = await once();
        seen[page] = (seen[page] ?? 0) + 1;
      }
      console.log(JSON.stringify(seen));
    })();`;
  const asking = async () =>
    Object.keys(
      JSON.parse((await net.outside.run(process.execPath, "-e", program)).out) as Record<string, number>,
    ).sort();

  test("by one change refuses and breaks no connection; taken away first, it does", async () => {
    await net.container(1, "prj_a");
    await net.serve(1, "one", "80");
    await net.worker.call("publish", mapping(), 0);
    const meanwhile = async (change: (slot: number) => Promise<unknown>) => {
      const answers = asking();
      const client = { asks: true };
      const end = () => {
        client.asks = false;
      };
      void answers.then(end, end);
      for (let slot = 1; client.asks; slot = 1 - slot) await change(slot);
      return answers;
    };
    expect(await meanwhile((slot) => net.worker.call("publish", mapping(), slot))).toEqual(["one", "zero"]);
    const naive = await meanwhile(async (slot) => {
      await net.worker.call("unpublish", mapping());
      await net.worker.call("publish", mapping(), slot);
    });
    expect(naive.filter((page) => page.startsWith("x "))).not.toEqual([]);
  });
});

describe("connections that exist", () => {
  // From one source port, so that all are one flow to the kernel.
  const send = (): Promise<unknown> => net.outside.run(...datagram(5555, host.public4, 8053));

  test("a UDP flow follows the port to another container", async () => {
    await net.container(1, "prj_a");
    const udp = mapping({ protocol: "udp", hostPort: 8053, containerPort: 53 });
    const zero = await net.count(0, "udp dport 53");
    const one = await net.count(1, "udp dport 53");
    await net.worker.call("publish", udp, 0);
    await send();
    expect([await zero(), await one()]).toEqual([1, 0]);
    await net.worker.call("publish", udp, 1);
    await send();
    expect([await zero(), await one()]).toEqual([1, 1]);
  });

  test("a flow that a released address was part of does not reach the address's next container", async () => {
    const udp = mapping({ protocol: "udp", hostPort: 8053, containerPort: 53 });
    await net.worker.call("publish", udp, 0);
    await send();
    // And one of the container's own making, which the outside could answer.
    await net.inside(0, ...datagram(7777, outside.public4, 9));
    const tracked = async (): Promise<string> => (await net.host.run("cat", "/proc/net/nf_conntrack")).out;
    expect((await tracked()).match(/ udp /g)).toHaveLength(2);
    await net.worker.call("close", 0);
    await net.worker.call("expel", 0);
    await net.worker.call("detach", 0);
    expect(await tracked()).not.toMatch(/ udp /);
  });
});
