/** Timers on one sleeper. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import * as Timers from "../../src/services/internal/Timers.ts"

it.effect("a timer that is due already runs once whoever set it has it in hand", () =>
  Effect.gen(function* () {
    const timers = yield* Timers.make
    // What a lease watcher does: it sets the next timer when one runs, and keeps the last to cancel it.
    let last: Timers.Timer | undefined
    let late = 0
    last = timers.at(timers.now(), () => {
      last = timers.at(timers.now() + 1_000, () => late++)
    })
    yield* TestClock.adjust(0)
    timers.cancel(last)
    yield* TestClock.adjust("1 minute")
    assert.strictEqual(late, 0)
  })
)
