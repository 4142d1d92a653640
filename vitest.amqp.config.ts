import { defineConfig } from "vitest/config"

/** What of the RabbitMQ backend is not part of `npm test` yet: see CONTRIBUTING. */
export default defineConfig({
  test: {
    include: ["test/layers/amqp-*.suite.ts"],
    testTimeout: 30_000,
    hookTimeout: 60_000,
    maxConcurrency: 10
  }
})
