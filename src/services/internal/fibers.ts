/** Running and stopping fibers from callback code. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"

/** How long an interrupted fiber may take to stop before it is left behind. */
export const stopGrace = Duration.seconds(5)

/**
 * Interrupts a fiber and waits until it has stopped, at most {@link stopGrace}.
 * User code that ignores interruption must not hang what waits for it: it is
 * left behind with a warning. A fiber that stops itself is not waited for.
 */
export const awaitStop = (fiber: Fiber.Fiber<unknown, unknown>, what: string): Effect.Effect<void> =>
  Effect.suspend(() => {
    fiber.interruptUnsafe()
    if (fiber.pollUnsafe() !== undefined || fiber === Fiber.getCurrent()) return Effect.void
    return Effect.timeoutOrElse(Effect.asVoid(Fiber.await(fiber)), {
      duration: stopGrace,
      orElse: () => Effect.logWarning(`${what} does not stop when interrupted; left behind`)
    })
  })
