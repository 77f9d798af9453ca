#!/bin/bash
# start_slurm.sh - install (if needed) and start a two-node SLURM cluster on one Debian 12 host, as root, without systemd.
# Idempotent: a daemon that is already up (by our own pid file) is left alone.  Stop with stop_slurm.sh.
# BASE must be reachable by user mysql (every parent directory o+x), so not under the home of root.
set -euo pipefail
BASE=${SLURM_MINI_BASE:-/var/tmp/slurm-mini}
ACCT=${SLURM_MINI_ACCT:-1}     # 0: no mariadb/slurmdbd, hence no working sacct
GPUS=${SLURM_MINI_GPUS:-0}     # >0: declare that many pretend GPUs per node, so that --gpus-per-node is accepted
[ "$(id -u)" = 0 ] || { echo "must be root" >&2; exit 1; }
if [ -e /etc/slurm/slurm.conf ] && ! grep -q '^ClusterName=mini$' /etc/slurm/slurm.conf; then
  echo "/etc/slurm/slurm.conf is not ours; refusing" >&2; exit 1
fi
t0=$(date +%s)
mkdir -p "$BASE"/{ctld,log,run,db,spool/n1,spool/n2}; chmod 755 "$BASE" "$BASE/run"
alive(){ [ -s "$1" ] && [ "$(cat "/proc/$(cat "$1")/comm" 2>/dev/null)" = "$2" ]; }
wait_for(){ local n=$1 out; shift
  for _ in $(seq $((n*10))); do out=$("$@" 2>&1) && return 0; sleep 0.1; done
  echo "timeout waiting for: $*: $out" >&2; return 1; }

PKGS="slurm-wlm munge"; if [ "$ACCT" = 1 ]; then PKGS="$PKGS slurmdbd slurm-wlm-mysql-plugin mariadb-server"; fi
if ! dpkg -s $PKGS >/dev/null 2>&1; then
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends $PKGS; } >"$BASE/log/apt.log" 2>&1 \
    || { tail -5 "$BASE/log/apt.log" >&2; exit 1; }
fi

# --- munge ------------------------------------------------------------------
install -d -o munge -g munge -m 755 /run/munge
install -d -o munge -g munge -m 700 /var/log/munge /var/lib/munge
if [ ! -s /etc/munge/munge.key ]; then            # Debian's postinst normally makes it
  dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 status=none
  chown munge:munge /etc/munge/munge.key; chmod 400 /etc/munge/munge.key
fi
if ! munge -n >/dev/null 2>&1; then
  setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged
  wait_for 5 munge -n
  cp /run/munge/munged.pid "$BASE/run/munged.pid" # a copy only when we started it
fi

# --- names: both nodes are this host; submitit uses the node name as MASTER_ADDR, so it must resolve
HOST=$(hostname -s)
[ -z "$(tail -c1 /etc/hosts)" ] || echo >>/etc/hosts
for n in n1 n2; do grep -qE "[[:space:]]$n([[:space:]]|\$)" /etc/hosts || echo "127.0.0.1 $n # slurm-mini" >>/etc/hosts; done
CPUS=$(nproc); MEM=$(( ($(awk '/MemTotal/{print $2}' /proc/meminfo) / 1024 - 512) / 2 ))

# --- accounting: a private mariadb (127.0.0.1:13306) + slurmdbd -------------
if [ "$ACCT" = 1 ]; then
  SOCK=$BASE/run/mysql.sock
  chown -R mysql:mysql "$BASE/db"; chmod 1777 "$BASE/run"
  if ! alive "$BASE/run/mariadb.pid" mariadbd; then
    [ -d "$BASE/db/mysql" ] || mariadb-install-db --no-defaults --user=mysql --datadir="$BASE/db" \
      --auth-root-authentication-method=normal --skip-test-db >"$BASE/log/mariadb-install.log" 2>&1
    setsid mariadbd --no-defaults --user=mysql --datadir="$BASE/db" --socket="$SOCK" --pid-file="$BASE/run/mariadb.pid" \
      --port=13306 --bind-address=127.0.0.1 --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 \
      </dev/null >"$BASE/log/mariadb.log" 2>&1 &
    wait_for 30 mariadb --no-defaults -uroot -S "$SOCK" -e 'select 1'
  fi
  mariadb --no-defaults -uroot -S "$SOCK" -e "create database if not exists slurm_acct_db;
    create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
    grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
  install -m 600 /dev/stdin /etc/slurm/slurmdbd.conf <<X
AuthType=auth/munge
DbdHost=localhost
DbdPort=16819
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=13306
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
LogFile=$BASE/log/slurmdbd.log
PidFile=$BASE/run/slurmdbd.pid
X
  ACCT_LINES="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16819"
else
  ACCT_LINES="AccountingStorageType=accounting_storage/none"
fi

GRES_LINE=""; GRES_NODE=""; : >/etc/slurm/gres.conf
if [ "$GPUS" -gt 0 ]; then
  GRES_LINE="GresTypes=gpu"; GRES_NODE=" Gres=gpu:$GPUS"
  for i in $(seq 0 $((GPUS-1))); do [ -c "$BASE/nvidia$i" ] || mknod "$BASE/nvidia$i" c 1 3; done   # a gpu gres needs File=<character device>
  echo "NodeName=n[1-2] Name=gpu File=$BASE/nvidia[0-$((GPUS-1))]" >/etc/slurm/gres.conf
fi
cat >/etc/slurm/slurm.conf <<X
ClusterName=mini
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
CredType=cred/munge
MailProg=/bin/true
SlurmctldPort=16817
SlurmctldDebug=verbose
SlurmctldPidFile=$BASE/run/slurmctld.pid
SlurmdPidFile=$BASE/run/slurmd-%n.pid
SlurmdSpoolDir=$BASE/spool/%n
StateSaveLocation=$BASE/ctld
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
ReturnToService=2
SlurmctldTimeout=60
SlurmdTimeout=60
InactiveLimit=0
KillWait=5
MinJobAge=300
JobRequeue=1
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=512
MaxArraySize=1001
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=5
JobCompType=jobcomp/none
$ACCT_LINES
$GRES_LINE
NodeName=n1 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17001 CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM$GRES_NODE State=UNKNOWN
NodeName=n2 NodeHostname=$HOST NodeAddr=127.0.0.1 Port=17002 CPUs=$CPUS Boards=1 SocketsPerBoard=1 CoresPerSocket=$CPUS ThreadsPerCore=1 RealMemory=$MEM$GRES_NODE State=UNKNOWN
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=n1,n2 Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
X

if [ "$ACCT" = 1 ]; then
  alive "$BASE/run/slurmdbd.pid" slurmdbd || slurmdbd
  wait_for 30 timeout 5 sacctmgr -n show cluster
  sacctmgr -n list cluster format=cluster%20 | grep -qw mini || sacctmgr -i add cluster mini >/dev/null
fi
alive "$BASE/run/slurmctld.pid" slurmctld || slurmctld
wait_for 20 sh -c 'scontrol ping | grep -q "is UP"'
for n in n1 n2; do alive "$BASE/run/slurmd-$n.pid" slurmd || slurmd -N $n; done
ready='[ "$(sinfo -h -N -p main -t idle,alloc,mix -o %N | sort -u | wc -l)" = 2 ]'
wait_for 15 sh -c "$ready" 2>/dev/null || { scontrol update nodename=n1,n2 state=resume || true; wait_for 20 sh -c "$ready"; }
sinfo
echo "up in $(( $(date +%s) - t0 )) s"
