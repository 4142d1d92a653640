import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type { TestClock } from "effect/testing"

/** Runs what may wait for time to pass, such as a drain, and lets it pass on a test clock until it has ended. */
export const passingTime = (
  clock: Clock.Clock,
  effect: Effect.Effect<void>,
  giveUp: Effect.Effect<void>
): Effect.Effect<void> => {
  const { adjust } = clock as Partial<TestClock.TestClock>
  if (adjust === undefined) return effect
  return Effect.gen(function* () {
    const fiber = yield* Effect.forkChild(effect, { startImmediately: true })
    for (let seconds = 0; fiber.pollUnsafe() === undefined; seconds++) {
      if (seconds === 600) yield* giveUp
      yield* adjust("1 second")
    }
  })
}
