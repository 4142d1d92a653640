/**
 * Runs the tasks of one subscriber one after the other, in the order they came.
 *
 * A task that completes without waiting runs inside `push`, with no scheduling.
 * At most `capacity` tasks wait: beyond that the oldest is dropped, and `onDrop`
 * told. Closing the scope drops what waits and interrupts what runs.
 */
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import type * as Fiber from "effect/Fiber"
import * as MutableList from "effect/MutableList"
import type * as Scope from "effect/Scope"
import { awaitStop } from "./fibers.ts"

export interface Mailbox<A> {
  readonly push: (item: A) => void
  /** Whether nothing runs or waits. */
  readonly idle: () => boolean
}

export const make = <A, R>(options: {
  readonly name: string
  readonly context: Context.Context<R>
  readonly capacity: number
  readonly run: (item: A) => Effect.Effect<unknown, unknown, R>
  /** Not called for tasks interrupted by closing. Must not throw. */
  readonly onFailure: (item: A, exit: Exit.Failure<unknown, unknown>) => void
  readonly onDrop: () => void
}): Effect.Effect<Mailbox<A>, never, Scope.Scope> =>
  Effect.gen(function* () {
    const runFork = Effect.runForkWith(options.context)
    const waiting = MutableList.make<A>()
    let running: Fiber.Fiber<unknown, unknown> | undefined
    let busy = false
    let closed = false

    const taskOf = (item: A): Effect.Effect<unknown, unknown, R> => {
      try {
        return options.run(item)
      } catch (error) {
        return Effect.die(error)
      }
    }

    const ended = (item: A, exit: Exit.Exit<unknown, unknown>) => {
      if (exit._tag === "Failure" && !closed) options.onFailure(item, exit)
    }

    const drain = (first: A) => {
      busy = true
      let item = first
      while (!closed) {
        const current = item
        const fiber = runFork(taskOf(current))
        const exit = fiber.pollUnsafe()
        if (exit === undefined) {
          running = fiber
          if (closed) fiber.interruptUnsafe() // by the task itself, before it waited
          fiber.addObserver((exit) => {
            running = undefined
            ended(current, exit)
            next()
          })
          return
        }
        ended(current, exit)
        if (waiting.length === 0) break
        item = MutableList.take(waiting) as A
      }
      busy = false
    }

    const next = () => {
      if (waiting.length === 0 || closed) busy = false
      else drain(MutableList.take(waiting) as A)
    }

    yield* Effect.addFinalizer(() =>
      Effect.suspend(() => {
        closed = true
        MutableList.clear(waiting)
        return running === undefined ? Effect.void : awaitStop(running, options.name)
      })
    )

    return {
      idle: () => !busy,
      push(item) {
        if (closed) return
        if (!busy) return drain(item)
        if (waiting.length >= options.capacity) {
          MutableList.take(waiting)
          options.onDrop()
        }
        MutableList.append(waiting, item)
      }
    }
  })
