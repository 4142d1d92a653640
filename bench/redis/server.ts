/** The server of these benchmarks: `REDIS_URL`, or a private one without a file that dies with this process. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as RedisServer from "../../test/servers/RedisServer.ts"

export const url = (): Promise<string> =>
  Effect.runPromise(
    Effect.flatMap(Scope.make(), (scope) => Scope.provide(RedisServer.make({ appendOnly: false }), scope)).pipe(
      Effect.map((server) => server.url)
    )
  )
