/** What can be wrong with a PostgreSQL. */
import * as Effect from "effect/Effect"
import { SqlClient } from "effect/sql/SqlClient"
import { type Examination, judged, right, skew, wrong } from "../Doctor.ts"
import { client, why } from "./index.ts"

const about = "postgresql"

export const examine: Examination = SqlClient.use((sql) =>
  Effect.gen(function* () {
    const [found] = yield* sql<Record<"version" | "fsync" | "commits" | "recovering", string>>`
      SELECT current_setting('server_version') AS version, current_setting('fsync') AS fsync,
        current_setting('synchronous_commit') AS commits, pg_is_in_recovery()::text AS recovering`
    const { commits, fsync, recovering, version } = found!
    return [
      right(about, `it answers, version ${version}`),
      judged(
        recovering === "false",
        about,
        recovering === "false" ? "it takes writes" : "it is a standby",
        "a standby takes no writes: name the primary"
      ),
      judged(
        fsync === "on" && commits !== "off",
        about,
        `fsync is ${fsync}, synchronous_commit is ${commits}`,
        "what was committed may be lost: leave both on"
      ),
      yield* skew(
        about,
        Effect.map(
          sql<{ readonly now: string }>`SELECT (extract(epoch FROM clock_timestamp()) * 1000)::text AS now`,
          ([row]) => Math.floor(Number(row!.now))
        )
      )
    ]
  })
).pipe(
  Effect.provide(client),
  Effect.catch((error) => Effect.succeed([wrong(about, why(error).detail)]))
)
