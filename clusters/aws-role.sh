#!/bin/sh
# What cluster.yaml needs once in an AWS account: a bucket, and the role `ddae-sweeps` for its machines, which may use
# that bucket and, because the head starts the workers, start machines with the same role.
#
#   sh clusters/aws-role.sh my-bucket
set -eu
bucket=${1:?give the name of a bucket, which must not be taken by anybody}
name=ddae-sweeps
account=$(aws sts get-caller-identity --query Account --output text)

aws s3 mb "s3://$bucket"
aws iam create-role --role-name $name --assume-role-policy-document '{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Principal": {"Service": "ec2.amazonaws.com"}, "Action": "sts:AssumeRole"}]}'
aws iam put-role-policy --role-name $name --policy-name $name --policy-document '{
 "Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Action": "s3:ListBucket", "Resource": "arn:aws:s3:::'"$bucket"'"},
  {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"],
   "Resource": "arn:aws:s3:::'"$bucket"'/*"},
  {"Effect": "Allow", "Action": ["ec2:*", "ssm:GetParameters"], "Resource": "*"},
  {"Effect": "Allow", "Action": ["iam:PassRole", "iam:GetInstanceProfile"],
   "Resource": ["arn:aws:iam::'"$account:role/$name"'", "arn:aws:iam::'"$account:instance-profile/$name"'"]}]}'
aws iam create-instance-profile --instance-profile-name $name
aws iam add-role-to-instance-profile --instance-profile-name $name --role-name $name
