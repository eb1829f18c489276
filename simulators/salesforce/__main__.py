"""Run the simulated Salesforce org until it is stopped. The first line printed is its address."""

from __future__ import annotations

import argparse

from simulators.serve import secret_from, serve

from . import Credentials, SalesforceSimulator


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m simulators.salesforce", description=__doc__)
    parser.add_argument("--port", type=int, default=8443, help="the port; 0 uses a free one (default: %(default)s)")
    parser.add_argument("--data", help="SQLite file that keeps the records (default: in memory)")
    parser.add_argument("--certs", default="var/demo/certs", help="folder of the CA and the certificate")
    parser.add_argument(
        "--daily-limit", type=int, default=100_000, help="API calls per day before the org refuses them"
    )
    parser.add_argument("--notify-url", default="", help="address that receives a callout for every change")
    parser.add_argument("--message-url", default="", help="address that outbound messages go to")
    parser.add_argument("--public-url", default="", help="address that a login tells its client to use")
    arguments = parser.parse_args()
    defaults = Credentials()
    credentials = Credentials(
        username=secret_from("DEMO_SALESFORCE_USERNAME", defaults.username),
        password=secret_from("DEMO_SALESFORCE_PASSWORD", defaults.password),
        security_token=secret_from("DEMO_SALESFORCE_SECURITY_TOKEN", defaults.security_token),
        client_id=secret_from("DEMO_SALESFORCE_CLIENT_ID", defaults.client_id),
        client_secret=secret_from("DEMO_SALESFORCE_CLIENT_SECRET", defaults.client_secret),
    )
    serve(
        SalesforceSimulator(
            arguments.port,
            certs=arguments.certs,
            data=arguments.data,
            credentials=credentials,
            daily_limit=arguments.daily_limit,
            notify_url=arguments.notify_url,
            public_url=arguments.public_url,
            # Read from the environment: the address ends in a secret, which the process list would show.
            message_url=f"{arguments.message_url}/{secret_from('DEMO_SALESFORCE_MESSAGE_SECRET')}"
            if arguments.message_url
            else "",
            notify_secret=secret_from("DEMO_SALESFORCE_NOTIFY_SECRET") if arguments.notify_url else "",
        )
    )


if __name__ == "__main__":
    main()
