/** The database that the environment names. */
import * as Config from "effect/Config"
import * as Redacted from "effect/Redacted"
import * as Setting from "../../services/internal/setting.ts"
import { InvalidInput } from "../../services/Reason.ts"

export const settings = {
  url: Setting.secret(
    "DATABASE_URL",
    "none: data is on Redis, or in memory",
    "Where the plugins keep their data: `postgres://user:password@host:port/database`"
  )
}

const check = ({ url }: Setting.Read<typeof settings>): InvalidInput | undefined => {
  if (url === undefined) return undefined
  const text = Redacted.value(url)
  const parsed = URL.canParse(text) ? new URL(text) : undefined
  if (parsed !== undefined && /^postgres(ql)?:$/.test(parsed.protocol) && parsed.pathname.length > 1) return undefined
  return new InvalidInput({ field: "url", detail: "must be like postgres://user:password@host:5432/database" })
}

export const config: Config.Config<Setting.Read<typeof settings>> = Config.flatMap(
  Setting.all(settings),
  Setting.refuse(check, () => settings.url.name)
)
