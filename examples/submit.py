"""Submit a run as a job, follow its log, and end with the run's own exit code: for scripts and CI.

python examples/submit.py http://HEAD:8265 opmix run examples/quickstart.yaml --output s3://bucket/demo

The working directory goes along. Submitted again with the same output, a run goes on where it stands.
"""

import asyncio
import shlex
import sys

from ray.job_submission import JobStatus, JobSubmissionClient


async def follow(client: JobSubmissionClient, job: str) -> None:
    async for text in client.tail_job_logs(job):
        print(text, end="", flush=True)


def main(address: str, command: list[str]) -> int:
    client = JobSubmissionClient(address)  # the token is read from RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token
    job = client.submit_job(entrypoint=shlex.join(command), runtime_env={"working_dir": "."})
    print(f"job {job}; stop it with: ray job stop --address {address} {job}", file=sys.stderr)
    asyncio.run(follow(client, job))
    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"job {job}: {info.status}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:]))
