import { defineConfig } from "vitest/config";

// One project per tier, by what a test needs. Host and e2e tests share the kernel: one file at a time.
const tier = (name: string, more: object = {}) => ({
  test: {
    name,
    include: [`test/${name}/**/*.test.ts`],
    testTimeout: 30_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 15_000 } },
    ...more,
  },
});

export default defineConfig({
  test: {
    pool: "forks",
    projects: [
      tier("unit"),
      tier("db", { globalSetup: "test/support/postgres.ts" }),
      tier("http", { globalSetup: "test/support/postgres.ts" }),
      tier("host", { globalSetup: "test/support/postgres.ts", fileParallelism: false, testTimeout: 60_000 }),
      tier("e2e", { fileParallelism: false, testTimeout: 180_000, hookTimeout: 120_000 }),
    ],
  },
});
