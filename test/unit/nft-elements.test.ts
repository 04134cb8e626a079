import { expect, test } from "vitest";
import { elementTransaction } from "../../src/isolation/apply/nft-elements.ts";
import { containerElements, type Element, portElements } from "../../src/isolation/plan/firewall.ts";

// The bytes are those that nft 1.0.6 sends for the same elements' text, as strace shows them, without the set's id,
// which stands for its name.

const scope = { instance: "ab12cd", block: 3 };
const table = "berth_ab12cd";
const container = containerElements(scope, 5, { group: 7, project: "prj_x", egress: true });
const port = (hostAddress: string | null): Element[] =>
  portElements(scope, { hostAddress, protocol: "udp", hostPort: 53 }, { slot: 0, containerPort: 5353 });

/** A message's body is the same up to the name of its set. */
const head = "0100000011000100 62657274685f61623132636400000000";

interface Sent {
  type: number;
  body: string;
}

function sent(remove: readonly Element[], add: readonly Element[]): Sent[] {
  return elementTransaction(0x01020304, table, remove, add).map(({ type, body }) => ({
    type,
    body: Buffer.from(body).toString("hex"),
  }));
}

const hex = (...parts: string[]): string => parts.join("").replaceAll(" ", "");

test("a transaction begins with the generation that it is for", () => {
  const messages = sent(container, container);
  expect(messages.map(({ type }) => type)).toEqual([
    16,
    ...Array<number>(7).fill(2574),
    ...Array<number>(7).fill(2572),
    17,
  ]);
  expect(messages[0]?.body).toBe(hex("0000000a 0800010001020304"));
  expect(messages.at(-1)?.body).toBe(hex("0000000a"));
});

test.each([
  [
    "source4",
    hex("0c000200 736f757263653400 24000380 20000180 1c000180 18000100", "62746162313263643500000000000000 0a581806"),
  ],
  [
    "group",
    hex(
      "0a000200 67726f7570000000 38000380 34000180 18000180 14000100 62746162313263643500000000000000",
      "0c000280 08000100 07000000 0c000600 000670726a5f7800",
    ),
  ],
  ["member4", hex("0c000200 6d656d6265723400 18000380 14000180 10000180 0c000100 07000000 0a581806")],
])("a container's element of %s", (set, bytes) => {
  const elements = container.filter((element) => element.set === set);
  expect(sent([], elements)[1]?.body).toBe(hex(head, bytes));
});

test("a port's element: protocol and port are padded to four bytes", () => {
  expect(sent([], port("2001:db8::1"))[1]?.body).toBe(
    hex(
      head,
      "0d000200 706f7274365f617400000000 44000380 40000180",
      "20000180 1c000100 20010db8000000000000000000000001 11000000 00350000",
      "1c000280 18000100 fdab12cdbe7200030000000000011801 14e90000",
    ),
  );
});

test("an element is taken out by its key alone", () => {
  expect(
    sent(
      container.filter((element) => element.comment !== undefined),
      [],
    )[1]?.body,
  ).toBe(hex(head, "0a000200 67726f7570000000 20000380 1c000180 18000180 14000100 62746162313263643500000000000000"));
});
