/** The broker of these benchmarks: a private one that dies with this process. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as RabbitServer from "../../test/servers/RabbitServer.ts"

export const url = (): Promise<string> =>
  Effect.runPromise(
    Effect.flatMap(Scope.make(), (scope) => Scope.provide(RabbitServer.make(), scope)).pipe(
      Effect.map((server) => server.url)
    )
  )
