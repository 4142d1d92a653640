/**
 * Processes that keep what they have in memory equal to PostgreSQL, while they are killed between commit and publish,
 * cut off, and lose their Redis. `npm run soak:sync` does so for longer, on RabbitMQ as well.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { run } from "./soak/sync-cluster.ts"

it.live(
  "every instance shows what the database has, and every committed task runs, whatever fails",
  () =>
    Effect.gen(function* () {
      const outcome = yield* run({ seconds: 8, backend: "redis", outbox: true, boundMillis: 60_000 })
      assert.deepStrictEqual(outcome.differing, [], JSON.stringify(outcome))
      assert.strictEqual(outcome.tasksLost, 0, JSON.stringify(outcome))
      assert.strictEqual(outcome.tasksUndone, 0, JSON.stringify(outcome))
      // Each has died with a message at least once, or nothing was shown.
      assert.isAtLeast(outcome.signalsKilled, 3)
    }),
  240_000
)
