import { defineConfig } from "vitest/config"

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    // A limit for what hangs: machines are busy.
    testTimeout: 60_000,
    hookTimeout: 120_000,
    maxConcurrency: 10
  }
})
