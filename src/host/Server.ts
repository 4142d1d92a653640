/**
 * A server that the processes of a cluster share: the one that the environment names,
 * or a private one.
 */
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import type * as PrivateServer from "./PrivateServer.ts"
import type { Refused } from "./Refused.ts"

export interface Server {
  /** `"REDIS_URL"`, or `"a private redis-server"`. */
  readonly where: string
  readonly isPrivate: boolean
  /** What a process that is to find it needs besides the environment of this one. */
  readonly env: PrivateServer.Environment
  /** Fails when it ends although it should not. */
  readonly ended: Effect.Effect<never, Refused>
  /** Removes what an app has stored there; its name must not be a part of another's. */
  readonly forget: (app: string) => Effect.Effect<void>
}

/** What there is to know about a kind of server. */
export interface Kind {
  /** The variables that name one; the first is set for a private one. */
  readonly variables: readonly [string, ...Array<string>]
  /** The others that are read with them, and say nothing about a private one. */
  readonly others: ReadonlyArray<string>
  /** Reads all of them. */
  readonly options: Effect.Effect<unknown, Refused>
  /** Connects once, to know; `variable` names it. */
  readonly check: (variable: string) => Effect.Effect<void, Refused>
  /** `"redis-server"`. */
  readonly binary: string
  readonly start: Effect.Effect<PrivateServer.PrivateServer, Refused, PrivateServer.Requires>
  readonly forget: (app: string) => Effect.Effect<void>
}

/** The first of the variables that names a server. */
export const named = (variables: ReadonlyArray<string>): Effect.Effect<Option.Option<string>> =>
  Effect.gen(function* () {
    for (const variable of variables) {
      const value = yield* Effect.orElseSucceed(Config.option(Config.String(variable)), () => Option.none())
      if (Option.isSome(value) && value.value !== "") return Option.some(variable)
    }
    return Option.none()
  })

/** Checks the one that is named; where none is, starts one, which ends with the scope. */
export const make = (kind: Kind): Effect.Effect<Server, Refused, PrivateServer.Requires> =>
  Effect.gen(function* () {
    const { forget } = kind
    yield* kind.options
    const variable = yield* named(kind.variables)
    if (Option.isSome(variable)) {
      yield* kind.check(variable.value)
      return { where: variable.value, isPrivate: false, env: {}, ended: Effect.never, forget }
    }
    const { ended, url } = yield* kind.start
    const [first, ...rest] = kind.variables
    const none = Object.fromEntries([...rest, ...kind.others].map((name) => [name, ""]))
    return {
      where: `a private ${kind.binary}`,
      isPrivate: true,
      env: { ...none, [first]: url },
      ended,
      forget: () => Effect.void
    }
  })
