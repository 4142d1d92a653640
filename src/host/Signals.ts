/** The signals that tell this process to stop, SIGINT and SIGTERM: whoever sends another one is in a hurry. */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Scope from "effect/Scope"

/** What comes within this time of a signal is the same one: npm passes on the Ctrl-C that its terminal sends as well. */
const same = "500 millis"

/** Done with the second signal to this process. */
export const second: Effect.Effect<Deferred.Deferred<void>, never, Scope.Scope> = Effect.gen(function* () {
  const clock = yield* Clock.Clock
  const second = yield* Deferred.make<void>()
  let first: bigint | undefined
  const onSignal = () => {
    const now = clock.monotonicTimeNanosUnsafe()
    first ??= now
    if (now - first > Duration.toNanosUnsafe(same)) Deferred.doneUnsafe(second, Exit.void)
  }
  yield* Effect.acquireRelease(
    Effect.sync(() => {
      for (const signal of ["SIGINT", "SIGTERM"]) process.on(signal, onSignal)
    }),
    () =>
      Effect.sync(() => {
        for (const signal of ["SIGINT", "SIGTERM"]) process.off(signal, onSignal)
      })
  )
  return second
})
