import { defineConfig } from "vitest/config";

// One project per tier, by what a test needs. Host and e2e tests take time and memory: one file at a time.
const afterKilled = "test/support/ownership.ts";
const database = "test/support/postgres.ts";
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
      tier("db", { globalSetup: [afterKilled, database] }),
      tier("http", { globalSetup: [afterKilled, database] }),
      tier("host", { globalSetup: [afterKilled, database], fileParallelism: false, testTimeout: 60_000 }),
      tier("e2e", { globalSetup: afterKilled, fileParallelism: false, testTimeout: 180_000, hookTimeout: 120_000 }),
    ],
  },
});
