/** The servers of these benchmarks: those of the environment, or private ones that die with this process. */
import * as Effect from "effect/Effect"
import * as Scope from "effect/Scope"
import * as PostgresServer from "../../test/servers/PostgresServer.ts"

export { url as redisUrl } from "../redis/server.ts"

/** It does not wait for the disk, which would hide what a statement costs. */
export const databaseUrl = (): Promise<string> =>
  Effect.runPromise(
    Effect.flatMap(Scope.make(), (scope) =>
      Scope.provide(PostgresServer.make({ settings: { shared_buffers: "128MB" } }), scope)
    ).pipe(Effect.map((server) => server.url))
  )
