import * as Effect from "effect/Effect"

/** `n` operations of fibers, each in a loop. */
export const inFlight = <E, R>(
  n: number,
  fibers: number,
  operation: (i: number) => Effect.Effect<unknown, E, R>
): Effect.Effect<void, E, R> =>
  fibers === 1
    ? loop(0, n, 1, operation)
    : Effect.forEach(Array.from({ length: fibers }), (_, fiber) => loop(fiber, n, fibers, operation), {
        concurrency: "unbounded",
        discard: true
      })

const loop = <E, R>(from: number, to: number, step: number, operation: (i: number) => Effect.Effect<unknown, E, R>) =>
  Effect.gen(function* () {
    for (let i = from; i < to; i += step) yield* operation(i)
  })
