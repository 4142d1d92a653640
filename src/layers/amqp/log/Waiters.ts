/** Those who wait for something to come about, each no longer than the timeout. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Timers from "../../../services/internal/Timers.ts"
import type { Unavailable } from "../../../services/Reason.ts"

export interface Waiters {
  readonly isEmpty: () => boolean
  readonly wait: Effect.Effect<void, Unavailable>
  /** Lets all of them go on. */
  readonly end: (exit: Exit.Exit<void, Unavailable>) => void
}

/** `late` says why it did not come about. */
export const make = (timers: Timers.Timers, timeout: number, late: () => Unavailable): Waiters => {
  const waiting = new Set<(exit: Exit.Exit<void, Unavailable>) => void>()
  return {
    isEmpty: () => waiting.size === 0,
    wait: Effect.callback<void, Unavailable>((resume) => {
      const leave = () => {
        waiting.delete(done)
        timers.cancel(timer)
      }
      const done = (exit: Exit.Exit<void, Unavailable>) => {
        leave()
        resume(exit)
      }
      const timer = timers.at(timers.now() + timeout, () => done(Exit.fail(late())))
      waiting.add(done)
      return Effect.sync(leave)
    }),
    end: (exit) => {
      for (const done of [...waiting]) done(exit)
    }
  }
}
